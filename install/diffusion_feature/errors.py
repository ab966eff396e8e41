"""Named errors. Each message gives what was expected, what was found and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

BREAKDOWNS = (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError)


class ExtractorError(Exception):
    """Base class of the extractor's errors."""


class DeviceNotFound(ExtractorError, ValueError):
    """A device that torch does not know or this machine does not have; the message lists the available ones."""


class PipelineNotFound(ExtractorError, FileNotFoundError):
    """Neither a folder written by `save_pretrained` nor a readable hub id."""


class PartMissing(ExtractorError):
    """The pipeline lacks a component that this family needs."""


class WrongFamily(ExtractorError, ValueError):
    """The pipeline's denoiser belongs to another family than `version`, has more inputs than a text and a noisy image,
    or cannot be tapped."""


class VersionNotKnown(ExtractorError, ValueError):
    """No family is registered under this version."""


class VersionTaken(ExtractorError, ValueError):
    """Another family is registered under this version."""


class LayerNotFound(ExtractorError, KeyError):
    """A layer id or pattern that this denoiser does not have."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class ModelFailed(ExtractorError, RuntimeError):
    """A component failed while it ran: damaged files, or files of another library version."""


class NoiseError(ExtractorError, ValueError):
    """The given noise has another shape than the latents, or contains NaN or infinity."""


class AttentionNotSeen(ExtractorError, RuntimeError):
    """An attention call bypassed the tap, or its output could not be reproduced from q, k and the mask."""


class ImageError(ExtractorError, ValueError):
    """A value cannot be read as an image; the message lists what can."""


class ImageUnreadable(ImageError):
    """An image file is missing, damaged, ambiguous or not an image.

    reason   the message without the file's name
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


class PromptCut(UserWarning):
    """The prompt is longer than the text encoder's maximum and was truncated.

    prompt, cut   the prompt, and the truncated text
    length        maximum number of text tokens
    number        index of the prompt in its batch
    """

    def __init__(self, prompt: str, cut: str, length: int, number: int = 0):
        super().__init__(f"{cut!r} was cut from {prompt!r}: the text encoder reads {length} tokens")
        self.prompt, self.cut, self.length, self.number = prompt, cut, length, number


@contextmanager
def naming(part: str, *more: type[Exception]) -> Iterator[None]:
    """Re-raise errors of a library's model as ModelFailed with the component's name, except out-of-memory errors.

    more   further exception classes
    """
    kinds: tuple[type[Exception], ...] = (*BREAKDOWNS, *more)
    try:
        yield
    except ExtractorError:
        raise
    except kinds as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded for this
            raise
        reason = " ".join(str(error).split()) or "no message"
        raise ModelFailed(
            f"the pipeline's {part} failed ({type(error).__name__}: {reason}): its files are damaged, or not made for "
            "the installed version of the library; fetch the pipeline again"
        ) from error


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, as text for a message."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=count, cutoff=0.0)) or "(none)"


def layer_not_found(layer: str, known: Iterable[str], where: str) -> LayerNotFound:
    """The error for one unknown layer id or pattern, with the nearest known ids."""
    return LayerNotFound(
        f"{layer!r} is not in this {where}. Nearest: {nearest(layer, known)}. All ids: FeatureExtractor.layer_ids()."
    )
