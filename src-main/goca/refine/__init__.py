"""Refinement of score maps: functions of maps and of an image, a space map or a dense feature; chains of them."""

from typing import Any

from diffusion_feature.renamed import warn_renamed

from goca.refine.affinity import activation_affinity, activation_similarity, affinity
from goca.refine.crf import dense_crf
from goca.refine.errors import (
    ChainError,
    DenseCRFMissing,
    ImageMissing,
    ImageReduced,
    MapNotCaptured,
    RefineError,
)
from goca.refine.matching import UNMATCHED, hungarian_match
from goca.refine.merging import merge_maps, merge_proposals
from goca.refine.pamr import median, pamr
from goca.refine.prototypes import prototypes

__all__ = [
    "UNMATCHED",
    "ChainError",
    "DenseCRFMissing",
    "ImageMissing",
    "ImageReduced",
    "MapNotCaptured",
    "RefineError",
    "activation_affinity",
    "activation_similarity",
    "affinity",
    "dense_crf",
    "hungarian_match",
    "median",
    "merge_maps",
    "merge_proposals",
    "pamr",
    "prototypes",
]

_FORMER = {"PictureMissing": "ImageMissing", "PictureReduced": "ImageReduced"}


def __getattr__(name: str) -> Any:
    if name not in _FORMER:
        raise AttributeError(f"goca.refine has no {name!r}; it has: {', '.join(__all__)}")
    warn_renamed(name, _FORMER[name])
    return globals()[_FORMER[name]]
