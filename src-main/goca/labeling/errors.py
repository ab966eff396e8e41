"""What can go wrong while labelling: with the whole job, or with one picture."""

from __future__ import annotations

from goca.errors import GocaError


class LabelingError(GocaError, ValueError):
    """A job that cannot be started or continued; the message says what was found and what to do."""


class KeyMissing(LabelingError):
    """The environment variable that should hold the server's key is not set."""


class LibrariesMissing(LabelingError, ImportError):
    """openai or httpx2 is not installed."""


class ServerRefused(LabelingError):
    """The server turns every request down (key, model, quota); what is answered so far is kept."""


class LogMismatch(LabelingError):
    """A log of answers that were asked for in another way; the message shows the difference."""


class NoCaption(GocaError):
    """One picture without a caption. `kind` is one of KINDS, `reason` a sentence for the log."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


# why a picture has no caption -> whether the server answered, so that it is asked again only on request
KINDS = {
    "unreachable": False,  # no answer after the last retry: asked again by the next run
    "rejected": True,  # the server turned this very request down
    "refused": True,  # the model does not want to describe the picture
    "empty": True,
    "malformed": True,  # no chat completion, or no list of nouns
    "oversized": True,  # more words than allowed
    "cut off": True,  # the model ran into its token limit
}
