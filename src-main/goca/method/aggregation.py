"""Auto aggregation while the forward runs: every layer is reduced as soon as it has passed.

One pass over chunks of queries and heads serves all that a layer is wanted for. A cross map becomes one
head-aggregated map at its own resolution. A self map becomes a number once the reference affinity is known; until then
its layer waits, as its queries and keys or as its head-mean map, whichever is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from diffusion_feature import Attention
from diffusion_feature.attention import HeadSum, whole
from torch import Tensor

from goca.method.deferred import Compact, Waiting, waiting
from goca.method.heads import HEAD_RULES as HEAD_RULES
from goca.method.heads import HeadOutputs, head_weights
from goca.method.layers import LAYER_RULES, Comparison, Reference, layer_weights
from goca.method.resizing import Grid, nearest_rows, on_device, resize_maps, self_map

Sink = Callable[[Tensor, Tensor], None]  # takes queries [s] and their rows of the head-mean self map [B, s, S]

COPIES = 3  # of a chunk's rows that a comparison or the space map makes


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
    """A consumer of one forward (see diffusion_feature.tap), asked for maps afterwards.

    peak_bytes   the most that it held at once while the forward ran: maps, waiting layers, the chunk at work
    """

    plan: Plan
    token_maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # block -> head rule -> [B, S, N]
    grids: dict[str, Grid] = field(default_factory=dict)  # block -> its grid
    similarities: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # layer rule -> block -> [B]
    waiting: dict[str, Waiting] = field(default_factory=dict)  # block -> its head-mean self map, or what makes it
    reference: Reference | None = None
    space: Tensor | None = None  # mean over space_blocks   [B, g*g, g*g]
    dense: dict[str, Tensor] = field(default_factory=dict)  # layer id -> feature   [B, C, h, w]
    peak_bytes: int = 0
    held_bytes: int = 0  # now, the reference apart

    def __post_init__(self) -> None:
        self.compared = [rule for rule in self.plan.layer_rules if LAYER_RULES[rule] is not None]
        reference = (self.plan.reference,) if self.compared else ()
        self.features: tuple[str, ...] = tuple(dict.fromkeys((*reference, *self.plan.dense)))
        self.similarities = {rule: {} for rule in self.compared}

    # ---- while the forward runs

    def attention(self, attention: Attention) -> None:
        block, grid = attention.layer.block, attention.grid
        crossed = attention.text_keys is not None and block in self.plan.blocks
        in_space = attention.image_keys is not None and block in self.plan.space_blocks
        compared = attention.image_keys is not None and bool(self.compared) and block in self.plan.blocks
        if not (crossed or in_space or compared):
            return
        self.grids[block] = grid
        every = all_queries(grid)
        wanted, sinks = list[Tensor](), list[Sink]()  # queries whose rows are made, and who takes rows of the self map
        if crossed:
            wanted.append(every)
        if in_space:
            wanted.append(nearest_rows(grid, self.plan.grid)[0])
            sinks.append(partial(self._add_space, grid))
        comparison = None
        if compared and self.reference is not None:
            comparison = Comparison(self.reference, self.compared, grid)
            wanted.append(comparison.queries)
            sinks.append(comparison.add)
        elif compared:
            self.waiting[block] = layer = waiting(attention, any(len(queries) == len(every) for queries in wanted))
            if not isinstance(layer, Compact):
                wanted.append(every)
                sinks.append(layer.add)
        queries = united(wanted, every)
        maps = one_pass(attention, queries, self.plan.head_rules if crossed else (), sinks)
        if crossed:
            self.token_maps[block] = maps
            self.held_bytes += storage_bytes(maps.values())
        if block in self.waiting:
            self.held_bytes += storage_bytes(self.waiting[block].tensors)
        if comparison is not None:
            self._note(block, comparison)
        self._account(attention.working_bytes(COPIES if sinks else 0) if len(queries) else 0)

    def feature(self, layer: str, feature: Tensor) -> None:
        if layer in self.plan.dense:
            self.dense[layer] = feature
            self.held_bytes += storage_bytes([feature])
        if self.compared and layer == self.plan.reference:
            self.reference = Reference(feature, self.plan.first_channel, self.plan.normalised_rows)
            for block in list(self.waiting):
                self._compare(block)
        self._account(0)

    def _compare(self, block: str) -> None:
        """A layer that waited becomes a number."""
        assert self.reference is not None
        comparison, layer = Comparison(self.reference, self.compared, self.grids[block]), self.waiting[block]
        for queries, rows in layer.rows(comparison.queries):
            comparison.add(queries, rows)
        self._account(layer.working_bytes(COPIES))
        self._note(block, comparison)
        self.held_bytes -= storage_bytes(layer.tensors)
        del self.waiting[block]

    def _note(self, block: str, comparison: Comparison) -> None:
        for rule, similarity in comparison.similarities().items():
            self.similarities[rule][block] = similarity

    def _add_space(self, grid: Grid, queries: Tensor, rows: Tensor) -> None:
        tokens = self.plan.grid[0] * self.plan.grid[1]
        if self.space is None:
            self.space = rows.new_zeros(len(rows), tokens, tokens)
            self.held_bytes += storage_bytes([self.space])
        targets, part = self_map(rows, queries, grid, self.plan.grid, self.plan.normalised_rows)
        self.space.index_add_(1, targets, part, alpha=1 / len(self.plan.space_blocks))

    def _account(self, working: int) -> None:
        reference = 0 if self.reference is None else storage_bytes(self.reference.tensors)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + reference + working)

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
            total[grid] = total[grid].add_(part) if grid in total else part
        summed = sum(resize_maps(maps, grid, self.plan.grid) for grid, maps in total.items())
        clamped = summed.clamp(min=0)  # type: ignore[union-attr]  # [B, g*g, N]
        return (clamped / clamped.sum(-1, keepdim=True)).unflatten(1, self.plan.grid)

    def block_map(self, block: str, head_rule: str | None = None) -> Tensor:
        """The token maps of one block on the grid, not normalised   [B, g, g, N]"""
        maps = self.token_maps[block][head_rule or self.plan.head_rules[0]].clamp(min=0)
        return resize_maps(maps, self.grids[block], self.plan.grid).unflatten(1, self.plan.grid)

    def space_map(self) -> Tensor | None:
        """Head-mean self-attention on the grid, mean over the plan's space_blocks   [B, g*g, g*g], row = query

        None where the plan has no space_blocks.
        """
        return self.space


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """What their storages take, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@lru_cache(maxsize=32)
def all_queries(grid: Grid) -> Tensor:
    return torch.arange(grid[0] * grid[1])


def united(queries: Sequence[Tensor], every: Tensor) -> Tensor:
    """Queries that are in any of the lists, ascending."""
    if any(len(part) == len(every) for part in queries):
        return every
    return torch.cat(list(queries)).unique() if queries else every[:0]


def aggregate_heads(attention: Attention, rules: Sequence[str]) -> dict[str, Tensor]:
    """A(s, n) = sum_h w_h(s) A_h(s, n) for each rule   [B, S, N]"""
    return one_pass(attention, all_queries(attention.grid), rules)


def one_pass(
    attention: Attention, queries: Tensor, rules: Sequence[str] = (), sinks: Sequence[Sink] = ()
) -> dict[str, Tensor]:
    """One softmax over some queries (ascending; with rules: all), chunk by chunk: token maps for each head rule
    [B, S, N] are returned, rows of the head-mean self map are handed to the sinks."""
    if len(queries) == 0:
        return {}
    every = len(queries) == attention.grid[0] * attention.grid[1]
    rows = attention.rows(None if every else on_device(queries, attention.query.device))
    weights = weigh_heads(rows, rules)
    wanted = [HeadSum(rows.text_keys, weight) for weight in weights.values() if rows.text_keys is not None]
    if sinks and rows.image_keys is not None:
        wanted.append(HeadSum(rows.image_keys))
    maps: dict[str, list[Tensor]] = {rule: [] for rule in rules}
    for chunk, sums in rows.head_sums(wanted):
        for rule, part in zip(maps, sums):
            maps[rule].append(part)
        if sinks:
            mean = sums[-1].div_(rows.heads)  # [B, s, S]
            for sink in sinks:
                sink(queries[chunk], mean)
    return {rule: whole(parts) for rule, parts in maps.items()}


def weigh_heads(rows: Attention, rules: Sequence[str]) -> dict[str, Tensor]:
    """w_h(s) for each rule   [B, H, S or 1]

    V_h is the text's; in joint attention the image's own. Layers whose heads cannot be weighed are averaged.
    """
    if not rules:
        return {}
    assert rows.result is not None and rows.value is not None
    own_keys = rows.text_keys if rows.image_keys is None else rows.image_keys
    chosen = {rule: rule if rows.layer.weighed else "average" for rule in rules}
    weighed = any(rule != "average" for rule in chosen.values())
    W = rows.layer.out_proj().to(rows.result.device) if weighed else rows.result.new_empty(0)
    heads = HeadOutputs(rows.result, W, rows.value[:, :, own_keys])
    return {rule: head_weights(heads, own) for rule, own in chosen.items()}
