"""The base class of GoCA's errors, and which errors a command reports only by their message."""

from __future__ import annotations

import sys


class GocaError(Exception):
    """Base class of GoCA's errors. Each also derives from the builtin it specialises, such as ValueError.

    The extractor's errors have their own base, `diffusion_feature.ExtractorError`.
    """


def explained(error: BaseException) -> bool:
    """Whether the message is enough for a user: GoCA's and the extractor's errors, and the system's about files.

    For any other error a command shows the traceback, or how to get it.
    """
    extractor = sys.modules.get(
        "diffusion_feature.errors"
    )  # not imported here: whatever raises its errors has loaded it
    ours = (GocaError, OSError) if extractor is None else (GocaError, OSError, extractor.ExtractorError)
    return isinstance(error, ours)
