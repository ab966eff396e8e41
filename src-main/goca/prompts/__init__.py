"""From a caption to token positions: grammar, class matching, tokenizers, annotation files."""

from .alignment import AlignmentError
from .annotation import AnnotationError, PromptAnnotation, read_annotations, read_usable_annotations, write_annotations
from .captioning import annotate, read_captions
from .grammar import CaptionError, Entity, parse_brackets
from .learnt import LearntTokens
from .loading import load_tokenizers
from .weighting import PromptWeights, blanked

__all__ = [
    "AlignmentError",
    "AnnotationError",
    "CaptionError",
    "Entity",
    "LearntTokens",
    "PromptAnnotation",
    "PromptWeights",
    "annotate",
    "blanked",
    "load_tokenizers",
    "parse_brackets",
    "read_annotations",
    "read_captions",
    "read_usable_annotations",
    "write_annotations",
]
