"""The work behind the page's two buttons: segment an image file; generate an image and segment it."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusion_feature.images import ImageUnreadable, read_image

from goca.app.models import Choice, Models, Say, silent
from goca.cli.models import strange_words
from goca.cli.work import kept_warnings
from goca.config import ConfigError
from goca.errors import GocaError, explained
from goca.generation.calling import call_arguments
from goca.generation.trace import trace
from goca.prompts import parse_brackets
from goca.prompts.grammar import names_nothing
from goca.prompts.words import PromptWords
from goca.segmentation import Segmentation
from goca.segmentation_model import SegmentationModel
from goca.segmenter import NoClass

LARGEST = 1 << 24  # pixels; larger images are downscaled on reading
REPLACED = ("EmptyClass", "PromptCut")  # warnings that the remark on lost words replaces


class ImageNotGiven(GocaError, ValueError):
    """No image was given."""


class SettingOutOfRange(GocaError, ValueError):
    """A setting of a generation is empty or out of range."""


RANGES = {"seed": (0, 2**53), "steps": (1, 200), "guidance": (0, 30)}  # 2^53: the largest exact integer in a browser


@dataclass(frozen=True)
class Settings:
    """How an image is generated. Raises SettingOutOfRange."""

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
    """The result of a run: a segmentation with remarks, or an error message.

    name, record   the image file's name without its suffix; the content of the JSON record
    """

    segmentation: Segmentation | None = None
    remarks: list[str] = field(default_factory=list)
    error: str = ""
    name: str = "image"
    record: Mapping[str, Any] = field(default_factory=dict)


def attempt(work: Callable[[], Result]) -> Result:
    """The result of the work, or its error as a sentence for the page; errors that are not GoCA's are also logged."""
    try:
        return work()
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        if explained(error):
            return Result(error=text)
        logging.getLogger(__name__).exception("a run of the page failed")
        return Result(error=f"{type(error).__name__}: {text}. The terminal of goca app shows the traceback.")


def segment(models: Models, choice: Choice, file: str | None, words: str, say: Say = silent) -> Result:
    """Segment an image file by words such as "cat, grass, wall", with the same result as `goca segment`.

    say   called with messages about the progress
    Errors: ImageNotGiven, NoClass, ImageUnreadable, those of the model.
    """
    if not file:
        raise ImageNotGiven("There is no image yet: drop one, or choose an example.")
    if not parse_brackets(words):
        raise NoClass("No words yet: type what is in the image, such as: cat, grass, wall")
    models.check(choice)
    path = Path(file)
    try:
        _, remarks, image = read_image(path, at_most=LARGEST)
    except ImageUnreadable as error:  # the path of the upload means nothing to the user
        raise ImageUnreadable(str(error).replace(str(path), path.name)) from None
    with models.segmenter(choice, say) as segmenter:
        say("Looking for the words")
        texts, cut = segmenter.fitted(words)
        counts = max(map(segmenter_counts(segmenter), texts)) if cut else (0, 0)
        with kept_warnings(debug=False) as warned:
            segmentation = segmenter(image, words, image_id=path.name)
        record = recorded(choice, segmenter, image=path.name, prompt=words, ask=segmenter.asked(None, [words]))
    remarks += lost(cut, *counts) + absent(segmentation, cut)
    remarks += [line for line in warned if not line.startswith(REPLACED)]
    return Result(segmentation, remarks, name=path.stem, record={**record, "notes": remarks})


def generate(models: Models, choice: Choice, prompt: str, words: str, settings: Settings, say: Say = silent) -> Result:
    """Generate an image from a prompt, and segment it into the words of the prompt.

    words   some words of the prompt, separated by commas; "": all content words
    say     called with messages about the progress
    Errors: NoClass, ConfigError, WordNotFound, TraceError, those of the model.
    """
    if not prompt.strip():
        raise NoClass("No prompt yet: type what the image should show, such as: a house, grass, sky")
    if choice.config.method != "goca":
        raise ConfigError(f"Generated images are segmented by GoCA, and {choice.model} is another method's config.")
    with models.pipe(choice, say) as pipe, kept_warnings(debug=False) as warned:
        with trace(pipe, choice.config) as traced:
            pipe(
                prompt,
                num_inference_steps=settings.steps,
                generator=torch.Generator().manual_seed(settings.seed),
                **call_arguments(choice.config, 1, float(settings.guidance)),
                **progress_callback(pipe, say),
            )
        if not traced.words():
            raise NoClass(f"The prompt {prompt!r} names nothing that could be seen; name things in it.")
        segmentation = traced.segment(words.lower() if words.strip() else None)
        read_words = traced.prompt_words()
        record = recorded(choice, traced.segmenter, prompt=prompt, **dataclasses.asdict(settings))
    remarks = lost(read_words.lost, *read_words.token_counts())
    remarks += [line for line in warned if not line.startswith(REPLACED)]
    name = f"generated-{settings.seed}"
    return Result(segmentation, remarks, name=name, record={**record, "notes": remarks})


def progress_callback(pipe: Any, say: Say) -> dict[str, Any]:
    """The argument that makes a pipeline report each step; none if the pipeline has no such argument."""
    say("Generating the image")
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        return {}
    done = 0

    def report(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        say("Generating the image", (done, max(done, steps_of(pipe))))
        return values

    return {"callback_on_step_end": report}


def steps_of(pipe: Any) -> int:
    """The number of steps of a running generation; some schedulers take more than requested."""
    return getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)


def recorded(choice: Choice, segmenter: SegmentationModel, **given: Any) -> dict[str, Any]:
    """The record of a run, with `given` first."""
    return {
        **given,
        "model": choice.model,
        "pipeline": choice.pipeline,
        "protocol": segmenter.protocol.to_dict(),
        "device": str(segmenter.extractor.device),
    }


def segmenter_counts(segmenter: SegmentationModel) -> Callable[[str], tuple[int, int]]:
    """A function: text -> the number of its tokens, and how many the segmenter's model reads."""
    extractor = segmenter.extractor
    return lambda text: PromptWords(text, **extractor.backbone.tokenizers(extractor.parts)).token_counts()


def unknown(choice: Choice, text: str) -> str:
    """A sentence that lists the words of a text that the embedded model does not know; "" if there are none."""
    strange = strange_words(choice.embedded, text) if choice.embedded else []
    return f"{choice.model} does not know: {', '.join(strange)}." if strange else ""


def absent(segmentation: Segmentation, cut: list[str]) -> list[str]:
    """A remark on the words that were not found, with the estimated probability that each is present after all."""
    judged = zip(segmentation.names, segmentation.presence or (), segmentation.present or ())
    missing = [f"{name} ({presence:.0%})" for name, presence, present in judged if not present and name not in cut]
    return [f"Looked for and not found: {', '.join(missing)}."] if missing else []


def lost(words: Sequence[str], whole: int, read: int) -> list[str]:
    """Remarks on words that did not fit into the prompt, and on words that name nothing visible.

    whole, read   tokens of the prompt, and how many of them the model reads
    """
    empty = [word for word in words if names_nothing(word)]
    cut = [word for word in words if word not in empty]
    why = f": the prompt has {whole} tokens, and the model reads {read}" if whole > read else ""
    remarks = [f"These words did not fit and have no area: {', '.join(cut)}{why}. Name fewer at once."] if cut else []
    return remarks + ([f"Nothing that could be seen is named by: {', '.join(empty)}."] if empty else [])
