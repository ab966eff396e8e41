"""Refinement of score maps: functions of maps and of an image, a space map or a dense feature; chains of them."""

from typing import TYPE_CHECKING

from diffusion_feature.renamed import former_names

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

if not TYPE_CHECKING:  # a type checker would take any name for one of the module's
    __getattr__ = former_names(__name__, {"PictureMissing": "ImageMissing", "PictureReduced": "ImageReduced"})
