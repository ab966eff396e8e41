"""`AttentionSummary`: the attention from which scores are computed, collected in one or several forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class AttentionSummary(Protocol):
    """Attention of a batch, reduced to the grid [g, g].

    Implemented by `Aggregator` (one forward pass), `AugmentationAverage` (several passes over the same images) and
    `StepAverage` (the denoising steps of a generation).
    """

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """Layer id -> dense feature   [B, C, h, w]"""

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """Token maps after head- and layer-wise aggregation   [B, g, g, N], sum 1 over tokens

        The rules are names of HEAD_RULES and LAYER_RULES that were collected; None: the first of them.
        """

    def space_map(self) -> Tensor | None:
        """Head-mean self-attention, row = query   [B, g*g, g*g]; None where the config names no self_layers"""


class LayerSummary(AttentionSummary, Protocol):
    """A summary that also gives single layers: `Aggregator` and `AugmentationAverage`."""

    @property
    def peak_bytes(self) -> int:
        """The most memory held at once while the forward passes ran."""

    def block_map(self, block: str, head_rule: str | None = None) -> Tensor:
        """Token maps of one block on the grid, not normalised   [B, g, g, N]"""

    def layer_weights(self, rule: str) -> Tensor:
        """One weight per block, sums to 1   [B, M]"""
