"""Auto aggregation while the forward runs: every layer is reduced as soon as it has passed.

A cross map becomes one head-aggregated map at its own resolution. A self map becomes a number once the reference
affinity is known; until then its layer keeps the smaller of its queries and keys, or its head-mean map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from diffusion_feature import Attention
from torch import Tensor

from goca.heads import HEAD_RULES as HEAD_RULES
from goca.heads import HeadOutputs, head_weights
from goca.layers import LAYER_RULES, Reference, layer_weights
from goca.resizing import Grid, nearest_rows, resize_maps, self_map


@dataclass(frozen=True)
class Plan:
    """What one forward is reduced to.

    blocks            blocks whose cross maps are aggregated, e.g. "mid-vit-block0"
    space_blocks      blocks whose self maps make the space map
    grid              where maps are aggregated
    head_rules, layer_rules    every combination of these can be asked for afterwards
    reference         layer id of the reference feature
    first_channel     only its first channel enters the reference affinity
    normalised_rows   rows of resized self maps sum to 1
    dense             ids of dense features that are kept as they are
    """

    blocks: tuple[str, ...]
    space_blocks: tuple[str, ...]
    grid: Grid
    head_rules: tuple[str, ...]
    layer_rules: tuple[str, ...]
    reference: str
    first_channel: bool = False
    normalised_rows: bool = True
    dense: tuple[str, ...] = ()


@dataclass
class Aggregator:
    """A consumer of one forward (see diffusion_feature.tap), asked for maps afterwards."""

    plan: Plan
    token_maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # block -> head rule -> [B, S, N]
    grids: dict[str, Grid] = field(default_factory=dict)  # block -> its grid
    similarities: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # layer rule -> block -> [B]
    waiting: dict[str, Callable[[Tensor | None], Tensor]] = field(default_factory=dict)  # block -> rows -> [B, n, S]
    reference: Reference | None = None
    space: Tensor | None = None  # sum over space_blocks   [B, g*g, g*g]
    dense: dict[str, Tensor] = field(default_factory=dict)  # layer id -> feature   [B, C, h, w]
    peak_bytes: int = 0  # the most that was held at once beyond the model's own forward

    def __post_init__(self) -> None:
        self.compared = [rule for rule in self.plan.layer_rules if LAYER_RULES[rule] is not None]
        reference = (self.plan.reference,) if self.compared else ()
        self.features: tuple[str, ...] = tuple(dict.fromkeys((*reference, *self.plan.dense)))
        self.similarities = {rule: {} for rule in self.compared}

    # ---- while the forward runs

    def attention(self, attention: Attention) -> None:
        self._reduce(attention)
        self._account(attention.working_bytes)

    def feature(self, layer: str, feature: Tensor) -> None:
        if layer in self.plan.dense:
            self.dense[layer] = feature
        if not self.compared or layer != self.plan.reference:
            self._account(0)
            return
        self.reference = Reference(feature, self.plan.first_channel, self.plan.normalised_rows)
        self._account(2 * self.reference.affinity.nbytes)
        for block in list(self.waiting):
            self._compare(block, self.waiting.pop(block))

    def _reduce(self, attention: Attention) -> None:
        block = attention.layer.block
        if attention.text_keys is not None and block in self.plan.blocks:
            self.grids[block] = attention.grid
            self.token_maps[block] = aggregate_heads(attention, self.plan.head_rules)
        if attention.image_keys is not None:
            in_space, compared = block in self.plan.space_blocks, self.compared and block in self.plan.blocks
            mean = None
            if in_space:
                mean = self._add_space(attention)
            if compared:
                self.grids[block] = attention.grid
                self._compare(block, self._self_rows(attention, mean))

    def _self_rows(self, attention: Attention, mean: Tensor | None) -> Callable[[Tensor | None], Tensor]:
        """How to get rows of the head-mean self map, now or later, holding as little as possible until then."""
        queries, width = attention.query.shape[2], attention.heads * attention.query.shape[3]
        if mean is None and (self.reference is not None or 2 * width < queries):
            return attention.compact().head_mean
        found = attention.head_mean() if mean is None else mean
        return lambda rows: found if rows is None else found[:, rows]

    def _compare(self, block: str, rows_of: Callable[[Tensor | None], Tensor]) -> None:
        if self.reference is None:
            self.waiting[block] = rows_of
            return
        grid = self.grids[block]
        rows = rows_of(self.reference.rows(grid))  # [B, n, S]
        for rule in self.compared:
            self.similarities[rule][block] = LAYER_RULES[rule](self.reference, rows, grid)  # type: ignore[misc]

    def _add_space(self, attention: Attention) -> Tensor | None:
        """Adds to the space map; returns the whole head-mean map if it was made on the way."""
        grid, target = attention.grid, self.plan.grid
        rows = nearest_rows(grid, target)[0]
        mean = attention.head_mean(rows if rows is None else rows.to(attention.query.device))  # [B, n, S]
        part = self_map(mean, grid, target, self.plan.normalised_rows)
        self.space = part if self.space is None else self.space + part
        return mean if rows is None else None

    def _account(self, working: int) -> None:
        kept: list[object] = [self.space, *self.dense.values()]
        if self.reference is not None:
            kept += [self.reference.affinity, *self.reference._adjoints.values()]
        for maps in (*self.token_maps.values(), *self.similarities.values()):
            kept += maps.values()
        for waiting in self.waiting.values():
            kept += held_by(waiting)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                    for tensor in kept if isinstance(tensor, Tensor)}  # fmt: skip
        self.peak_bytes = max(self.peak_bytes, sum(storages.values()) + working)

    # ---- afterwards

    def layer_weights(self, rule: str) -> Tensor:
        """w_m, one per block of the plan, sums to 1   [B, M]"""
        if LAYER_RULES[rule] is None:
            some = next(iter(self.token_maps[self.plan.blocks[0]].values()))
            return some.new_full((len(some), len(self.plan.blocks)), 1 / len(self.plan.blocks))
        return layer_weights(torch.stack([self.similarities[rule][block] for block in self.plan.blocks], dim=-1))

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """sum_m w_m * resize(A_m), clamped at 0, then sum 1 over all text tokens at each pixel   [B, g, g, N]

        The rules are among the plan's; its first ones by default.
        """
        head_rule, layer_rule = head_rule or self.plan.head_rules[0], layer_rule or self.plan.layer_rules[0]
        weights = self.layer_weights(layer_rule)
        total: dict[Grid, Tensor] = {}  # resizing is linear: maps of one resolution are summed before they are resized
        for number, block in enumerate(self.plan.blocks):
            part = self.token_maps[block][head_rule] * weights[:, number, None, None]
            grid = self.grids[block]
            total[grid] = total[grid] + part if grid in total else part
        summed = sum(resize_maps(maps, grid, self.plan.grid) for grid, maps in total.items())
        clamped = summed.clamp(min=0)  # type: ignore[union-attr]  # [B, g*g, N]
        return (clamped / clamped.sum(-1, keepdim=True)).unflatten(1, self.plan.grid)

    def space_map(self) -> Tensor:
        """Head-mean self-attention on the grid, mean over the plan's space_blocks   [B, g*g, g*g], row = query"""
        assert self.space is not None
        return self.space / len(self.plan.space_blocks)


def held_by(rows: Callable[[Tensor | None], Tensor]) -> list[object]:
    """The tensors that a waiting layer holds."""
    attention = getattr(rows, "__self__", None)
    if attention is not None:
        return [attention.query, attention.key, attention.mask]
    return [cell.cell_contents for cell in rows.__closure__ or ()]  # type: ignore[attr-defined]


def aggregate_heads(attention: Attention, rules: Iterable[str]) -> dict[str, Tensor]:
    """A(s, n) = sum_h w_h(s) A_h(s, n) for each rule   [B, S, N]

    V_h is the text's; in joint attention the image's own. Layers whose heads cannot be weighed are averaged.
    """
    rows, layer = attention.rows(), attention.layer
    assert rows.result is not None and rows.value is not None
    own_keys = rows.text_keys if rows.image_keys is None else rows.image_keys
    heads = HeadOutputs(rows.result, layer.out_proj(), rows.value[:, :, own_keys])
    weights = {rule: head_weights(heads, rule if layer.weighed else "average")[..., None] for rule in rules}
    maps: dict[str, list[Tensor]] = {rule: [] for rule in weights}
    for chunk in rows.chunks():
        probabilities = rows.probabilities(chunk)[..., rows.text_keys]  # [B, H, s, N]
        for rule, weight in weights.items():
            part = weight if weight.shape[2] == 1 else weight[:, :, chunk]
            maps[rule].append((probabilities * part).sum(1))
    return {rule: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for rule, parts in maps.items()}
