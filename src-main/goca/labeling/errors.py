"""Errors of labelling: of the whole job, or of one image."""

from __future__ import annotations

from goca.errors import GocaError


class LabelingError(GocaError, ValueError):
    """A job cannot be started or continued; the message says what was found and what to do."""


class KeyMissing(LabelingError):
    """The environment variable that should hold the server's key is not set."""


class LibrariesMissing(LabelingError, ImportError):
    """openai or httpx2 is not installed."""


class ServerRefused(LabelingError):
    """The server refuses every request (key, model, quota); existing answers are kept."""


class LogMismatch(LabelingError):
    """The log holds answers to other settings; the message shows the difference."""


class NoCaption(GocaError):
    """One image without a caption. `kind` is one of KINDS, `reason` a sentence for the log."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


# why an image has no caption -> whether the server answered; answered images are only repeated on request
KINDS = {
    "unreachable": False,  # no answer after the last retry: requested again by the next run
    "rejected": True,  # the server refused this request
    "refused": True,  # the model declined to describe the image
    "empty": True,
    "malformed": True,  # not a chat completion, or not a list of nouns
    "oversized": True,  # more words than allowed
    "cut off": True,  # the model ran into its token limit
}
