"""From a caption to token positions: grammar, class matching, tokenizers, and the annotation file."""

from .annotation import AnnotationError, PromptAnnotation, read_annotations, write_annotations

__all__ = ["AnnotationError", "PromptAnnotation", "read_annotations", "write_annotations"]
