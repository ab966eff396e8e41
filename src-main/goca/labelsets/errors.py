"""What can be wrong with the input of a labelled set."""

from goca.errors import GocaError


class LabelSetError(GocaError, ValueError):
    """An input or a folder that a labelled set cannot be made of; the message says what to change."""


class TagsUnreadable(LabelSetError):
    """A file of tags is not CSV or JSON of the expected form."""


class TagsMismatch(LabelSetError):
    """There are tags without a photo, or photos without tags."""


class PlanError(LabelSetError):
    """Classes, backgrounds, captions or counts are unsuitable for generating a set."""
