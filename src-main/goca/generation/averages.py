"""Helpers of `trace`: step selection, the conditional half of a batch, means over steps, word maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusion_feature import Attention, Consumer
from diffusion_feature.calls import Call
from diffusion_feature.renamed import warn_renamed
from PIL import Image
from torch import Tensor

from goca.drawing.legend import with_scale
from goca.drawing.notebook import as_html, as_png
from goca.errors import GocaError
from goca.method.summary import AttentionSummary


class TraceError(GocaError, ValueError):
    """A generation cannot be traced, or was not; the message says what to do."""


@dataclass
class Conditional:
    """A consumer that passes on one part of a batch: `count` images with their prompts.

    part   number of the part; None: the last one, which with guidance is the half with the prompt
    """

    consumer: Consumer
    count: int
    part: int | None = None

    @property
    def features(self) -> Collection[str]:
        return self.consumer.features

    def attention(self, attention: Attention) -> None:
        size = len(attention.query)
        cut = {
            name: value[self.own]
            for name in ("query", "key", "value", "mask", "result")
            if (value := getattr(attention, name)) is not None and value.ndim == 4 and len(value) == size
        }
        self.consumer.attention(dataclasses.replace(attention, **cut))

    def feature(self, layer: str, feature: Tensor) -> None:
        self.consumer.feature(layer, feature[self.own])

    @property
    def own(self) -> slice:
        if self.part is None:
            return slice(-self.count, None)
        return slice(self.part * self.count, (self.part + 1) * self.count)


class StepAverage:
    """The running mean of the attention of several forward passes (an `AttentionSummary`), in constant memory.

    count  number of passes so far
    """

    def __init__(self) -> None:
        self.count = 0
        self.dense: dict[str, Tensor] = {}  # layer id -> feature   [B, C, h, w]
        self._tokens: Tensor | None = None  # [B, g, g, N]
        self._space: Tensor | None = None  # [B, g*g, g*g]

    def add(self, step: AttentionSummary) -> None:
        """Add another pass, with the first of its head and layer rules."""
        self.count += 1
        self._tokens = self._moved(self._tokens, step.attention_map())
        if (space := step.space_map()) is not None:
            self._space = self._moved(self._space, space)
        for layer, feature in step.dense.items():
            self.dense[layer] = self._moved(self.dense.get(layer), feature.float())

    def _moved(self, mean: Tensor | None, value: Tensor) -> Tensor:
        return value.clone() if mean is None else mean.lerp_(value, 1 / self.count)

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """[B, g, g, N], with the rules of the passes; the arguments are ignored. Raises TraceError without a pass."""
        if self._tokens is None:
            raise TraceError("no denoising step was averaged yet")
        return self._tokens

    def space_map(self) -> Tensor | None:
        """[B, g*g, g*g], row = query; None without self_layers"""
        return self._space


@dataclass(frozen=True, repr=False)
class WordMap:
    """The map of a word in a generated image.

    map      after rescaling   [g, g]; 0..1 under the default rule
    raw      attention to the word, mean over its tokens, as a share of all tokens   [g, g]
    """

    word: str
    tokens: tuple[int, ...]
    map: Tensor
    raw: Tensor
    image: Any = None

    @property
    def picture(self) -> Any:
        """The former name of `image`."""
        warn_renamed("WordMap.picture", "WordMap.image")
        return self.image

    def overlay(self, image: Any = None) -> Image.Image:
        """The map over the generated image, or over a given one. Raises TraceError if there is neither."""
        from goca.drawing.figures import heat_overlay  # matplotlib

        shown = self.image if image is None else image
        if shown is None:
            raise TraceError("the pipeline returned no image (output_type='latent'?); pass one: overlay(image)")
        return heat_overlay(shown, self.map)

    def __repr__(self) -> str:
        return "WordMap({}; {} x {})".format(self.word, *self.map.shape)

    def _repr_png_(self) -> bytes:
        """For notebooks: the map over its image, or over white, with a legend."""
        return as_png(self._drawn())

    def _repr_html_(self) -> str:
        return as_html(self._drawn(), repr(self))

    def _drawn(self) -> Image.Image:
        from goca.drawing.figures import heat_overlay  # matplotlib

        h, w = self.map.shape
        blank = Image.new("RGB", (16 * w, 16 * h), "white")
        colours = heat_overlay(Image.new("RGB", (256, 1), "white"), np.linspace(0, 1, 256)[None])
        ends = float(self.map.min()), float(self.map.max())
        return with_scale(self.overlay(blank if self.image is None else None), self.word, colours, ends)


def step_rule(steps: str | slice | Iterable[int] | None) -> Callable[[int], bool]:
    """Whether a step counts, by its number from 0."""
    if steps is None or steps == "all":
        return lambda step: True
    if isinstance(steps, slice):
        start, stop, stride = steps.start or 0, steps.stop, steps.step or 1
        if start < 0 or stride < 1 or (stop is not None and stop < 0):
            raise TraceError(f"steps={steps}: the number of steps is not known in advance; count forward, from 0")
        return lambda step: step >= start and (stop is None or step < stop) and (step - start) % stride == 0
    if isinstance(steps, str):
        raise TraceError(f"steps={steps!r} is invalid; expected 'all', a slice, or a list of step numbers")
    numbers = frozenset(steps)
    if not numbers or any(not isinstance(number, int) or number < 0 for number in numbers):
        raise TraceError(f"steps={sorted(numbers, key=str)}: expected step numbers from 0 up")
    return numbers.__contains__


def repeated(one: Call, other: Call) -> bool:
    """Whether two calls are for the same latents, possibly with fewer prompts."""
    shared = min(len(one.latents), len(other.latents))
    return same(one.latents[:shared], other.latents[:shared])


def part_of(call: Call, count: int, perturbed: bool) -> int | None:
    """The number of the part of a call's batch that has the prompts, with `count` images per part; None: the last.

    perturbed   the last part is a copy with perturbed attention (PAG)
    Raises TraceError for an unexpected batch size.
    """
    parts, odd = divmod(len(call.latents), count)
    if odd or not 1 <= parts <= 2 + perturbed:
        raise TraceError(
            f"the denoiser was given a batch of {len(call.latents)} for {count} images; expected {count} "
            f"(no guidance) or {2 * count} (guidance: without and with the prompt). "
            "Embeddings? Give trace(pipe, prompt=[...])"
        )
    if parts == 2 and same(call.text[:count], call.text[count : 2 * count]):
        return 0  # one prompt in both: the second is the perturbed one
    return 1 if parts == 3 else None


def negative_part(call: Call, count: int, part: int | None, prompt_first: bool) -> int | None:
    """The number of the part of a call's batch that has the negative prompt; None: there is none.

    part          the part with the prompt, from `part_of`
    prompt_first  whether guidance puts the prompt before the negative one
    """
    if len(call.latents) == count or (part == 0 and not prompt_first):
        return None
    return int(prompt_first)


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))
