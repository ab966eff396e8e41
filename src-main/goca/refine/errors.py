"""What can be wrong with a refinement; every message says what was expected, what was found and what to do."""

from goca.errors import GocaError


class RefineError(GocaError, ValueError):
    """Maps, an image or a parameter that a refinement cannot use."""


class ChainError(RefineError):
    """A chain with an unknown step or parameter, or with steps in an order that cannot work."""


class MapNotCaptured(RefineError):
    """A step asks for a map or a feature that the forward did not keep."""


class PictureMissing(RefineError):
    """A step looks at the picture, and there is none."""


class DenseCRFMissing(RefineError, ImportError):
    """pydensecrf is not installed."""


class PictureReduced(UserWarning):
    """A picture was too large for a step, which worked on a smaller copy."""
