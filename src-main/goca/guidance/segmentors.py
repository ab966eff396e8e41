"""Where the masks come from: GoCA, S-CFG's own segmentor, or any object with the two methods of `Segmentor`.

The batch that passes is the guidance batch: n unconditional images, then the same n with their prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusion_feature import Attention, Consumer
from torch import Tensor, nn

from goca.guidance.rate import GuidanceError, smooth
from goca.method.aggregation import Aggregator, aggregate_heads
from goca.method.rescaling import gaussian_blur, min_max, rescale
from goca.method.resizing import Grid, positions
from goca.refine import affinity
from goca.refine.affinity import activation_similarity
from goca.segmenter import Segmenter


@dataclass(frozen=True)
class PromptTokens:
    """Which text tokens of one image mean what, as positions in the sequence.

    words      all but special ones, punctuation included
    sentence   the one that stands for the sentence: the first (CLIP, BERT), or the end token (T5)
    """

    words: tuple[int, ...]
    sentence: int

    @property
    def starts(self) -> bool:
        """The sentence's token comes first, so that an empty prompt has it too."""
        return self.sentence == 0

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens that may own a region: the words, and a first token."""
        return (0, *self.words) if self.starts else self.words


Masks = tuple[Tensor, Tensor]  # regions of the tokens [n, N, g, g], foreground [n, 1, g, g]; 0 or 1, float32


class Segmentor(Protocol):
    """What gives masks for one forward of a denoiser on 2n images, the unconditional ones first."""

    def consumer(self, latents: Grid) -> Consumer:
        """A fresh consumer of the forward's attentions and features (diffusion_feature.tap), for latents of (h, w)."""
        ...

    def masks(self, consumer: Any, tokens: Sequence[PromptTokens]) -> Masks:
        """The masks of the n images, from that consumer after the forward."""
        ...


class GocaSegmentor:
    """GoCA on both halves; what is refined flows along the conditional half's self-attention."""

    def __init__(self, segmenter: Segmenter):
        self.config = segmenter.config
        self.plan = dataclasses.replace(segmenter.plan(), first_channel=False)  # here in both protocols

    def consumer(self, latents: Grid) -> Aggregator:
        return Aggregator(self.plan)

    def masks(self, consumer: Aggregator, tokens: Sequence[PromptTokens]) -> Masks:
        uncond, text = consumer.attention_map().chunk(2)  # [n, g, g, N]
        space = self.space_maps(consumer)
        each = list(zip(uncond, text, space, tokens, strict=True))
        maps = [self.token_maps(text, S, own) for _, text, S, own in each]
        regions = torch.stack([placed(found, own, text.shape[-1]) for found, own in zip(maps, tokens)])
        foreground = torch.stack([self.foreground(*parts) for parts in each])
        return largest(regions), foreground

    def space_maps(self, consumer: Aggregator) -> Tensor:
        """Of the conditional half; without self maps, along a dense feature that the config's refinement names."""
        if (space := consumer.space_map()) is not None:
            return space.chunk(2)[1]  # [n, g*g, g*g]
        if not consumer.dense:
            raise GuidanceError(
                "the config's self_layers name no map along which regions spread; name some, or a dense feature "
                "(refine: [{activation_affinity: {layer: ...}}])"
            )
        features = next(iter(consumer.dense.values())).chunk(2)[1]
        return torch.stack([activation_similarity(each, self.config.grid) for each in features])

    def token_maps(self, attention: Tensor, S: Tensor, tokens: PromptTokens) -> Tensor:
        """Each token as a class of its own, rescaled over all words   [kept, g, g]"""
        entities = [[token] for token in tokens.kept]
        return affinity(
            rescale(attention, entities, tokens.words, self.config.rescale_method), S, self.config.affinity_order
        )

    def foreground(self, uncond: Tensor, text: Tensor, S: Tensor, tokens: PromptTokens) -> Tensor:
        """Where the sentence's token gets less than half of its range   [1, g, g]"""
        sentence = (uncond if tokens.starts else text)[..., tokens.sentence]
        refined = affinity(sentence[None], S, self.config.affinity_order)
        return (min_max(gaussian_blur(refined)) < 0.5).float()


class ScfgSegmentor:
    """S-CFG's own: plain averages at the two coarsest resolutions, spread by their own self-attention."""

    def __init__(self, segmenter: Segmenter):
        self.grid = segmenter.config.grid
        self.factors = coarsest(segmenter.extractor.denoiser)

    def consumer(self, latents: Grid) -> AttentionMeans:
        return AttentionMeans({(ceil(latents[0] / factor), ceil(latents[1] / factor)) for factor in self.factors})

    def masks(self, consumer: AttentionMeans, tokens: Sequence[PromptTokens]) -> Masks:
        uncond, text = self.token_maps(consumer).chunk(2)  # [n, N, g, g]
        kept = [maps[positions(own.kept, maps.device)] for maps, own in zip(text, tokens)]
        regions = torch.stack([placed(maps, own, text.shape[1]) for maps, own in zip(kept, tokens)])
        foreground = torch.stack([self.foreground(*parts) for parts in zip(uncond, text, tokens, strict=True)])
        return largest(regions), foreground

    def token_maps(self, consumer: AttentionMeans) -> Tensor:
        """[2n, N, g, g]"""
        parts = []
        for grid in consumer.grids:
            SA, CA = consumer.mean("self", grid), consumer.mean("cross", grid)
            CA = (SA + 3 * SA @ SA) / 4 @ CA  # [2n, S, N]
            maps = CA.transpose(1, 2).unflatten(2, grid)
            maps = smooth(F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False))
            parts.append(maps / maps.mean((2, 3), keepdim=True))
        return torch.stack(parts).mean(0)

    def foreground(self, uncond: Tensor, text: Tensor, tokens: PromptTokens) -> Tensor:
        """Where another token beats the sentence's: any of the empty prompt's, or a word where T5 has no first one."""
        maps, rest = (uncond, range(1, len(uncond))) if tokens.starts else (text, tokens.words)
        return (maps[tokens.sentence] < maps[positions(rest, maps.device)].amax(0)).float()[None]


class AttentionMeans:
    """A consumer that keeps, for some grids, the mean of all self maps and of all cross maps over heads and layers."""

    def __init__(self, grids: set[Grid]):
        self.grids = sorted(grids)
        self.features: tuple[str, ...] = ()
        self.sums: dict[tuple[str, Grid], tuple[Tensor, int]] = {}

    def attention(self, attention: Attention) -> None:
        if attention.grid not in self.grids:
            return
        if attention.image_keys is not None:
            self.add("self", attention.grid, attention.head_mean())
        if attention.text_keys is not None:
            self.add("cross", attention.grid, aggregate_heads(attention, ["average"])["average"])

    def add(self, kind: str, grid: Grid, maps: Tensor) -> None:
        total, count = self.sums.get((kind, grid), (0.0, 0))
        self.sums[kind, grid] = (total + maps, count + 1)

    def mean(self, kind: str, grid: Grid) -> Tensor:
        """[2n, S, S] or [2n, S, N]"""
        total, count = self.sums[kind, grid]
        return total / count

    def feature(self, layer: str, feature: Tensor) -> None: ...


def coarsest(denoiser: nn.Module, count: int = 2) -> list[int]:
    """How much smaller than the latents the coarsest attentions are: 4 and 8 in SD 1.5, 2 in PixArt."""
    config: Any = denoiser.config
    stages = getattr(config, "down_block_types", None)
    if stages is None:
        return [config.patch_size]
    factors = {2**level for level, kind in enumerate(stages) if "CrossAttn" in kind}
    if "CrossAttn" in (config.mid_block_type or ""):
        factors.add(2 ** (len(stages) - 1))
    return sorted(factors)[-count:]


def placed(maps: Tensor, tokens: PromptTokens, length: int) -> Tensor:
    """The maps of the tokens that are kept at their places, all others 0   [N, g, g]"""
    whole = maps.new_zeros(length, *maps.shape[1:])
    whole[positions(tokens.kept, maps.device)] = maps
    return whole


def largest(maps: Tensor) -> Tensor:
    """1 where a token's map reaches the maximum over tokens; ties mark several   [n, N, g, g]"""
    return (maps == maps.amax(1, keepdim=True)).float()


SEGMENTORS: dict[str, Callable[[Segmenter], Segmentor]] = {"goca": GocaSegmentor, "s-cfg": ScfgSegmentor}
