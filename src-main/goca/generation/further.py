"""Texts besides the prompt: the negative prompt, and further words that do not change the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusion_feature import Attention, Consumer
from torch import Tensor

from goca.generation.adapters import PipelineLayers
from goca.generation.averages import StepAverage, TraceError
from goca.generation.maps import TextMaps
from goca.prompts.words import PromptWords

if TYPE_CHECKING:
    from goca.generation.trace import trace

NO_NEGATIVE = (
    "no negative prompt was traced: the pipeline ran without guidance, or guides in a second call of the denoiser, "
    "which is not supported; Stable Diffusion, SDXL and PixArt run both halves in one call"
)


@dataclass(frozen=True)
class FurtherWords:
    """Words that are not in the prompt, each encoded as a separate text.

    states  their tokens' text states for cross-attention, without start, end and padding   [n, c]
    rows    word -> its rows of `states`
    """

    states: Tensor
    rows: dict[str, list[int]]

    @classmethod
    @torch.no_grad()
    def encoded(cls, layers: PipelineLayers, words: Sequence[str]) -> FurtherWords:
        """Encode words with a pipeline's own text encoders. Raises TraceError, WordNotFound."""
        family = layers.backbone
        if family.attended is None:
            raise TraceError(
                f"further words are not supported for the {family.name}: its layers change the text together with the "
                "image, or the path of its text is unknown; use Stable Diffusion, SDXL or PixArt"
            )
        states = family.attended(layers.parts, family.encode_text(layers.parts, list(words)).arguments)
        known, found, rows = family.tokenizers(layers.parts), [], dict[str, list[int]]()
        for word, own in zip(words, states):
            tokens = PromptWords(word, **known).positions(word)
            start = sum(map(len, rows.values()))
            rows[word.lower()] = list(range(start, start + len(tokens)))
            found.append(own[tokens])
        return cls(torch.cat(found), rows)


def further_words(given: str | Sequence[str] | None) -> list[str]:
    """The words in "mushroom, wall" or a list, without repetitions. Raises TraceError if there are none."""
    if given is None:
        return []
    texts = given.split(",") if isinstance(given, str) else list(given)
    words = list({text.lower(): text for each in texts if (text := " ".join(each.split()))}.values())
    if not words:
        raise TraceError(f'further={given!r} contains no words; expected e.g. "mushroom, wall"')
    return words


@torch.no_grad()
def joined(attention: Attention, states: Tensor) -> Attention:
    """A cross-attention with the keys of further tokens after the prompt's, in one softmax over both.

    states   text states of the further tokens   [n, c]

    Values and result, from which head weights are computed, remain those of the prompt.
    """
    module: Any = attention.layer.module
    key = module.to_k(states.to(attention.key)).unflatten(-1, (attention.heads, -1)).transpose(0, 1)  # [H, n, d]
    key = key if module.norm_k is None else module.norm_k(key)
    keys = torch.cat([attention.key, key.expand(len(attention.key), -1, -1, -1)], dim=2)
    mask = attention.mask
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], attention.key.shape[2])
        seen = mask.new_full((*mask.shape[:-1], len(states)), True if mask.dtype == torch.bool else 0)
        mask = torch.cat([mask, seen], dim=-1)
    return dataclasses.replace(attention, key=keys, mask=mask, text_keys=slice(0, keys.shape[2]))


@dataclass
class Joining:
    """A consumer of attention to the prompt and further tokens together."""

    consumer: Consumer
    states: Tensor

    @property
    def features(self) -> Collection[str]:
        return self.consumer.features

    def attention(self, attention: Attention) -> None:
        self.consumer.attention(attention if attention.text_keys is None else joined(attention, self.states))

    def feature(self, layer: str, feature: Tensor) -> None:
        self.consumer.feature(layer, feature)


class Beside(TextMaps):
    """The maps of another text than the prompt, in a generation traced by `of`.

    prompts  the texts, one per image
    nothing  the error message if the text was never attended to
    beyond   further words, whose tokens follow those of the text
    """

    def __init__(self, of: trace, prompts: list[str], nothing: str, beyond: FurtherWords | None = None):
        self.of, self.prompts, self.nothing, self.beyond = of, prompts, nothing, beyond
        self.segmenter, self.layers, self.capture = of.segmenter, of.layers, StepAverage()

    @property
    def images(self) -> list[Any]:  # type: ignore[override]
        return self.of.images

    def refuse(self) -> None:
        self.of.refuse()
        if not self.capture.count:
            raise TraceError(self.nothing)

    def size(self) -> tuple[int, int]:
        return self.of.size()
