"""Refinement of score maps: functions of maps and of an image, a space map or a dense feature; chains of them."""

from goca.refine.affinity import activation_affinity, activation_similarity, affinity
from goca.refine.crf import dense_crf
from goca.refine.errors import (
    ChainError,
    DenseCRFMissing,
    MapNotCaptured,
    PictureMissing,
    PictureReduced,
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
    "MapNotCaptured",
    "PictureMissing",
    "PictureReduced",
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
