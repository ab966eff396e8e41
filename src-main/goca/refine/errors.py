"""Errors of refinements; every message says what was expected, what was found and how to fix it."""

from goca.errors import GocaError


class RefineError(GocaError, ValueError):
    """Maps, an image or a parameter that a refinement cannot use."""


class ChainError(RefineError):
    """A chain with an unknown step or parameter, or with steps in an order that cannot work."""


class MapNotCaptured(RefineError):
    """A step needs a map or a feature that the forward pass did not collect."""


class ImageMissing(RefineError):
    """A step needs the image, but there is none."""


class DenseCRFMissing(RefineError, ImportError):
    """pydensecrf is not installed."""


class ImageReduced(UserWarning):
    """An image was too large for a step, which used a smaller copy."""
