"""What the page's two buttons do: segment a picture's file, generate a picture and segment it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusion_feature.images import PictureUnreadable, read_image

from goca.app.models import Choice, Models
from goca.cli.segment import embedded_words, kept_warnings, words_of
from goca.config import ConfigError
from goca.errors import GocaError, explained
from goca.generation.calling import call_arguments
from goca.generation.trace import trace
from goca.prompts import parse_brackets
from goca.prompts.grammar import names_nothing
from goca.segmentation import Segmentation
from goca.segmenter import NoClass

LARGEST = 1 << 24  # pixels that a picture is read with: four times as many as on the page's own maps, and more
TOLD_HERE = ("EmptyClass", "PromptCut")  # warnings that the remark on lost words says in plainer words


class PictureNotGiven(GocaError, ValueError):
    """A run without a picture."""


class SettingOutOfRange(GocaError, ValueError):
    """A setting of a generation that is empty or beyond its range."""


RANGES = {"seed": (0, 2**53), "steps": (1, 200), "guidance": (0, 30)}  # 2^53: what a browser counts up to


@dataclass(frozen=True)
class Settings:
    """How a picture is generated. Raises SettingOutOfRange."""

    seed: int = 0
    steps: int = 30
    guidance: float = 4.0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None or not low <= value <= high:
                found = "empty" if value is None else value
                raise SettingOutOfRange(f"{name} is {found}; it goes from {low} to {high}")


@dataclass(frozen=True)
class Result:
    """What a run came to: a segmentation and remarks on it, or an error in words."""

    segmentation: Segmentation | None = None
    remarks: list[str] = field(default_factory=list)
    error: str = ""


def attempt(work: Callable[[], Result]) -> Result:
    """The result of the work, or its error as a sentence for the page; one that is not GoCA's own is also logged."""
    try:
        return work()
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        if explained(error):
            return Result(error=text)
        logging.getLogger(__name__).exception("a run of the page failed")
        return Result(error=f"{type(error).__name__}: {text}. The terminal of goca app shows where it came from.")


def segment(models: Models, choice: Choice, file: str | None, words: str) -> Result:
    """A picture's file by words such as "cat, grass, wall"; the same result as `goca segment`.

    Errors: PictureNotGiven, NoClass, PictureUnreadable, those of the model.
    """
    if not file:
        raise PictureNotGiven("There is no picture yet: drop one, or choose an example.")
    if not parse_brackets(words):
        raise NoClass("No words yet: type what is in the picture, such as: cat, grass, wall")
    models.check(choice)
    path = Path(file)
    try:
        _, remarks, picture = read_image(path, at_most=LARGEST)
    except PictureUnreadable as error:  # where an upload is kept says nothing to its owner
        raise PictureUnreadable(str(error).replace(str(path), path.name)) from None
    with models.segmenter(choice) as segmenter:
        _, cut = segmenter.fitted(words)
        with kept_warnings(debug=False) as warned:
            segmentation = segmenter(picture, words, image_id=path.name)
    remarks += unknown(choice, words.lower()) + lost(cut) + absent(segmentation, cut)
    return Result(segmentation, remarks + [line for line in warned if not line.startswith(TOLD_HERE)])


def generate(models: Models, choice: Choice, prompt: str, words: str, settings: Settings) -> Result:
    """A picture from a prompt, and where its words are.

    words   some of the prompt's, separated by commas; "": all that name something
    Errors: NoClass, ConfigError, WordNotFound, TraceError, those of the model.
    """
    if not prompt.strip():
        raise NoClass("No prompt yet: type what the picture should show, such as: a house, grass, sky")
    if choice.config.method != "goca":
        raise ConfigError(f"Generated pictures are segmented by GoCA, and {choice.model} is another method's config.")
    with models.pipe(choice) as pipe, kept_warnings(debug=False) as warned:
        with trace(pipe, choice.config) as traced:
            pipe(
                prompt,
                num_inference_steps=settings.steps,
                generator=torch.Generator().manual_seed(settings.seed),
                **call_arguments(choice.config, 1, float(settings.guidance)),
            )
        if not traced.words():
            raise NoClass(f"The prompt {prompt!r} names nothing that could be seen; name things in it.")
        segmentation = traced.segment(words.lower() if words.strip() else None)
        read_words = traced.prompt_words()
    remarks = unknown(choice, ", ".join(read_words.content)) + lost(read_words.lost)
    return Result(segmentation, remarks + [line for line in warned if not line.startswith(TOLD_HERE)])


def unknown(choice: Choice, caption: str) -> list[str]:
    """Words that mean nothing to the embedded model."""
    strange = [word for word in words_of(caption) if word not in embedded_words(choice.name)] if choice.embedded else []
    return [f"{choice.model} does not know: {', '.join(strange)}."] if strange else []


def absent(segmentation: Segmentation, cut: list[str]) -> list[str]:
    """Words that were looked for and not found, with the probability that each is there all the same."""
    said = zip(segmentation.names, segmentation.presence or (), segmentation.present or ())
    missing = [f"{name} ({presence:.0%})" for name, presence, present in said if not present and name not in cut]
    return [f"Looked for and not found: {', '.join(missing)}."] if missing else []


def lost(words: list[str]) -> list[str]:
    """Words that did not fit into the prompt, and such as name nothing."""
    empty = [word for word in words if names_nothing(word)]
    cut = [word for word in words if word not in empty]
    told = [f"These words did not fit and have no area: {', '.join(cut)}. Name fewer at once."] if cut else []
    return told + ([f"Nothing that could be seen is named by: {', '.join(empty)}."] if empty else [])
