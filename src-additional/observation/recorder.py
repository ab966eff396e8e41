"""Records single heads of single layers and their weights during one forward pass, besides its aggregation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from diffusion_feature import Attention
from goca.method.aggregation import Aggregator, weigh_heads
from torch import Tensor


@dataclass
class Layer:
    """One cross-attention layer of one image.

    heads     attention of every head to every word, mean over the word's tokens   [H, K, h, w]
    weights   weight of each head at each pixel; sums to 1 over heads   [H, h, w]
    """

    heads: Tensor
    weights: Tensor

    def aggregated(self) -> Tensor:
        """[K, h, w]"""
        return (self.heads * self.weights[:, None]).sum(0)


@dataclass
class Recorder:
    """A consumer of attention (see diffusion_feature.tap): aggregates, and keeps every layer's heads for some words.

    words   the tokens of each word
    """

    aggregator: Aggregator
    words: Sequence[Sequence[int]]
    layers: dict[str, Layer] = field(default_factory=dict)  # block -> layer

    @property
    def features(self) -> Collection[str]:
        return self.aggregator.features

    def attention(self, attention: Attention) -> None:
        self.aggregator.attention(attention)
        block, plan = attention.layer.block, self.aggregator.plan
        if attention.text_keys is None or block not in plan.blocks:
            return
        maps = attention.map("cross")[0]  # [H, S, N]
        heads = torch.stack([maps[..., list(tokens)].mean(-1) for tokens in self.words], dim=1)  # [H, K, S]
        weights = next(iter(weigh_heads(attention.rows(), plan.head_rules[:1]).values()))[0]  # [H, S or 1]
        grid = attention.grid
        self.layers[block] = Layer(heads.unflatten(2, grid), weights.expand(-1, maps.shape[1]).unflatten(1, grid))

    def feature(self, layer: str, feature: Tensor) -> None:
        self.aggregator.feature(layer, feature)
