"""Named errors: each says what was expected, what was found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

BREAKDOWNS = (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError)


class ExtractorError(Exception):
    """Anything the extractor refuses to do."""


class DeviceNotFound(ExtractorError, ValueError):
    """A device that torch does not know, or that this machine does not have; the message lists those that are here."""


class PipelineNotFound(ExtractorError, FileNotFoundError):
    """Neither a folder written by `save_pretrained` nor a hub id that can be read."""


class PartMissing(ExtractorError):
    """A pipeline without a part that this family needs."""


class WrongFamily(ExtractorError, ValueError):
    """The pipeline's denoiser belongs to another family than the version names, or is given more than a text and a
    noisy image, or cannot be looked into as it is."""


class VersionNotKnown(ExtractorError, ValueError):
    """No family is registered under this version."""


class VersionTaken(ExtractorError, ValueError):
    """Another family is registered under this version."""


class LayerNotFound(ExtractorError, KeyError):
    """A layer id or pattern that this denoiser does not have."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class ModelFailed(ExtractorError, RuntimeError):
    """A part of the model broke down while it ran: damaged files, or those of another version of the library."""


class NoiseError(ExtractorError, ValueError):
    """Given noise of another shape than the latents, or with NaN or infinity in it."""


class AttentionNotSeen(ExtractorError, RuntimeError):
    """An attention was computed out of the tap's sight, or is not what its queries and keys say."""


class ImageError(ExtractorError, ValueError):
    """Something that is not taken as an image; the message says what is."""


class PictureUnreadable(ImageError):
    """A file that is missing, damaged or no image, or one that does not say what is meant.

    reason   the message without the file's name
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


class PromptCut(UserWarning):
    """The prompt is longer than the text encoder reads; the rest was left out.

    prompt, cut   the prompt, and what was left out of it
    length        text tokens that the encoder reads
    number        the prompt's place in its batch
    """

    def __init__(self, prompt: str, cut: str, length: int, number: int = 0):
        super().__init__(f"{cut!r} was cut from {prompt!r}: the text encoder reads {length} tokens")
        self.prompt, self.cut, self.length, self.number = prompt, cut, length, number


@contextmanager
def naming(part: str, *more: type[Exception]) -> Iterator[None]:
    """Whatever breaks down inside a library's model, as a ModelFailed that names the part; memory that runs out apart.

    more   further kinds of errors that count
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
    """The known names that look most like `name`, as text for a message."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(name, known, n=count, cutoff=0.0)) or "(none)"


def layer_not_found(layer: str, known: Iterable[str], where: str) -> LayerNotFound:
    """The error for one unknown layer id or pattern, with the nearest known ids."""
    return LayerNotFound(
        f"{layer!r} is not in this {where}. Nearest: {nearest(layer, known)}. All ids: FeatureExtractor.layer_ids()."
    )
