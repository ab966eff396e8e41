"""Auto aggregation: every layer is reduced while the forward pass runs, so that few attention maps are in memory.

One pass over chunks of queries computes everything that a layer is needed for. A cross map becomes one head-aggregated
map at its own resolution. A self map becomes a similarity once the reference affinity is known; before that the layer
is deferred (goca.method.deferred).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from diffusion_feature import Attention
from diffusion_feature.attention import HeadSum, whole
from torch import Tensor

from goca.method.deferred import Deferred, DeferredQK, defer
from goca.method.heads import HeadOutputs, head_weights
from goca.method.layers import LAYER_RULES, LayerComparison, Reference, layer_weights
from goca.method.resizing import Grid, nearest_rows, on_device, resize_maps, self_map

Receive = Callable[[Tensor, Tensor], None]  # takes queries [s] and their rows of the head-mean self map [B, s, S]

COPIES = 3  # copies of a chunk's rows made by a comparison or the space map


@dataclass(frozen=True)
class Plan:
    """Which attention maps and features one forward pass collects.

    blocks            blocks whose cross maps are aggregated, e.g. "mid-vit-block0"
    space_blocks      blocks whose self maps are averaged to the space map
    grid              (height, width) on which maps are aggregated
    head_rules, layer_rules    names of HEAD_RULES and LAYER_RULES; every combination can be asked for afterwards
    reference         layer id of the reference feature
    first_channel     only its first channel enters the reference affinity
    normalised_rows   rows of resized self maps sum to 1
    dense             ids of dense features that are collected
    rows              number of rows of the reference affinity used to compare layers; None: all, which is exact
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
    rows: int | None = None


@dataclass(frozen=True)
class RowRequest:
    """A request for rows of one layer's head-mean self map.

    queries   the queries whose rows are needed, ascending   [s]
    receive   called with each chunk of queries and rows, which may include other rows
    finish    called after the last chunk
    """

    queries: Tensor
    receive: Receive
    finish: Callable[[], None] = lambda: None


class Aggregator:
    """The attention of one forward pass (an `AttentionSummary`): a consumer of the tap that returns maps afterwards.

    token_maps     block -> head rule -> [B, S, N], on the block's own grid
    grids          block -> its (height, width)
    similarities   layer rule -> block -> [B]
    deferred       block -> its self map, until the reference is known
    space          mean of the head-mean self maps of the plan's space_blocks   [B, g*g, g*g]
    dense          layer id -> feature   [B, C, h, w]
    held_bytes     memory of all these
    peak_bytes     the most memory held at once, including the reference and the current chunk
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.compared = [rule for rule in plan.layer_rules if LAYER_RULES[rule] is not None]
        reference = (plan.reference,) if self.compared else ()
        self.features: tuple[str, ...] = tuple(dict.fromkeys((*reference, *plan.dense)))
        self.token_maps: dict[str, dict[str, Tensor]] = {}
        self.grids: dict[str, Grid] = {}
        self.similarities: dict[str, dict[str, Tensor]] = {rule: {} for rule in self.compared}
        self.deferred: dict[str, Deferred] = {}
        self.reference: Reference | None = None
        self.space: Tensor | None = None
        self.dense: dict[str, Tensor] = {}
        self.held_bytes = self.peak_bytes = 0

    # ---- while the forward pass runs

    def attention(self, attention: Attention) -> None:
        """Reduce one layer to its token maps, its part of the space map and its similarity to the reference."""
        block = attention.layer.block
        rules = self.plan.head_rules if attention.text_keys is not None and block in self.plan.blocks else ()
        requests = self._row_requests(attention, every_row=bool(rules))
        if not rules and not requests and block not in self.deferred:
            return
        self.grids[block] = attention.grid
        every = all_queries(attention.grid)
        queries = every if rules else union([request.queries for request in requests], every)
        with self._measured(attention.working_bytes(COPIES if requests else 0) if len(queries) else 0):
            maps = one_pass(attention, queries, rules, [request.receive for request in requests])
            if rules:
                self.token_maps[block] = maps
                self._hold(maps.values())
            for request in requests:
                request.finish()

    def feature(self, layer: str, feature: Tensor) -> None:
        """Keep a dense feature; with the reference feature, compare the layers that were deferred."""
        with self._measured():
            if layer in self.plan.dense:
                self.dense[layer] = feature
                self._hold([feature])
            if self.compared and layer == self.plan.reference:
                self.reference = Reference(feature, self.plan.first_channel, self.plan.normalised_rows, self.plan.rows)
                for block in list(self.deferred):
                    self._compare_deferred(block, self.reference)

    def _row_requests(self, attention: Attention, every_row: bool) -> list[RowRequest]:
        """The requests for rows of the layer's self map; a layer before the reference is deferred.

        every_row   whether all rows are computed anyway, for the cross map
        """
        block, grid, requests = attention.layer.block, attention.grid, list[RowRequest]()
        if attention.image_keys is None:
            return requests
        if block in self.plan.space_blocks:
            queries = nearest_rows(grid, self.plan.grid)[0]
            requests.append(RowRequest(queries, partial(self._add_space, grid)))
            every_row = every_row or len(queries) == len(all_queries(grid))
        if not self.compared or block not in self.plan.blocks:
            return requests
        if self.reference is not None:
            comparison = LayerComparison(self.reference, self.compared, grid)
            finish = partial(self._store_similarities, block, comparison)
            requests.append(RowRequest(comparison.queries, comparison.add, finish))
            return requests
        self.deferred[block] = layer = defer(attention, every_row)
        if isinstance(layer, DeferredQK):
            self._hold(layer.tensors)
        else:
            requests.append(RowRequest(all_queries(grid), layer.add, lambda: self._hold(layer.tensors)))
        return requests

    def _compare_deferred(self, block: str, reference: Reference) -> None:
        """Reduce a deferred layer to its similarity."""
        comparison, layer = LayerComparison(reference, self.compared, self.grids[block]), self.deferred[block]
        with self._measured(layer.working_bytes(COPIES)):
            for queries, rows in layer.rows(comparison.queries):
                comparison.add(queries, rows)
        self._store_similarities(block, comparison)
        self.held_bytes -= storage_bytes(layer.tensors)
        del self.deferred[block]

    def _store_similarities(self, block: str, comparison: LayerComparison) -> None:
        for rule, similarity in comparison.similarities().items():
            self.similarities[rule][block] = similarity

    def _add_space(self, grid: Grid, queries: Tensor, rows: Tensor) -> None:
        """Add rows of one layer's self map to the space map."""
        tokens = self.plan.grid[0] * self.plan.grid[1]
        if self.space is None:
            self.space = rows.new_zeros(len(rows), tokens, tokens)
            self._hold([self.space])
        targets, part = self_map(rows, queries, grid, self.plan.grid, self.plan.normalised_rows)
        self.space.index_add_(1, targets, part, alpha=1 / len(self.plan.space_blocks))

    def _hold(self, tensors: Iterable[Tensor]) -> None:
        self.held_bytes += storage_bytes(tensors)

    @contextmanager
    def _measured(self, working: int = 0) -> Iterator[None]:
        """Update `peak_bytes` after a piece of work: what is held then, the reference, and `working` bytes."""
        yield
        reference = 0 if self.reference is None else storage_bytes(self.reference.tensors)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + reference + working)

    # ---- afterwards

    def layer_weights(self, rule: str) -> Tensor:
        """Layer weights w_m, one per block of the plan, sum 1   [B, M]"""
        if LAYER_RULES[rule] is None:
            some = next(iter(self.token_maps[self.plan.blocks[0]].values()))
            return some.new_full((len(some), len(self.plan.blocks)), 1 / len(self.plan.blocks))
        return layer_weights(torch.stack([self.similarities[rule][block] for block in self.plan.blocks], dim=-1))

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """Aggregated token maps: sum_m w_m resize(A_m), clamped at 0, normalised over tokens   [B, g, g, N]

        head_rule, layer_rule   rules in the plan; None: its first
        returns                 sum 1 over all text tokens at each pixel (arXiv 2603.06178, layer-wise aggregation)
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
    """Memory of the tensors' storages; a storage that several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@lru_cache(maxsize=32)
def all_queries(grid: Grid) -> Tensor:
    """0, 1, ... for each token of the grid   [S]"""
    return torch.arange(grid[0] * grid[1])


def union(queries: Sequence[Tensor], every: Tensor) -> Tensor:
    """The queries in any of the lists, ascending."""
    if any(len(part) == len(every) for part in queries):
        return every
    return torch.cat(list(queries)).unique() if queries else every[:0]


def aggregate_heads(attention: Attention, rules: Sequence[str]) -> dict[str, Tensor]:
    """A(s, n) = sum_h w_h(s) A_h(s, n) for each rule   [B, S, N]"""
    return one_pass(attention, all_queries(attention.grid), rules)


def one_pass(
    attention: Attention, queries: Tensor, rules: Sequence[str] = (), receivers: Sequence[Receive] = ()
) -> dict[str, Tensor]:
    """Compute the attention of some queries once, chunk by chunk.

    queries     ascending; with rules: all   [s]
    rules       names of HEAD_RULES
    receivers   called with each chunk of queries and their rows of the head-mean self map
    returns     head rule -> token maps   [B, S, N]
    """
    if len(queries) == 0:
        return {}
    every = len(queries) == attention.grid[0] * attention.grid[1]
    rows = attention.rows(None if every else on_device(queries, attention.query.device))
    weights = weigh_heads(rows, rules)
    wanted = [HeadSum(rows.text_keys, weight) for weight in weights.values() if rows.text_keys is not None]
    if receivers and rows.image_keys is not None:
        wanted.append(HeadSum(rows.image_keys))
    maps: dict[str, list[Tensor]] = {rule: [] for rule in rules}
    for chunk, sums in rows.head_sums(wanted):
        for rule, part in zip(maps, sums):
            maps[rule].append(part)
        if receivers:
            mean = sums[-1].div_(rows.heads)  # [B, s, S]
            for receive in receivers:
                receive(queries[chunk], mean)
    return {rule: whole(parts) for rule, parts in maps.items()}


def weigh_heads(rows: Attention, rules: Sequence[str]) -> dict[str, Tensor]:
    """Head weights w_h(s) for each rule   [B, H, S or 1]

    V_h are the values of the text or, in joint attention, of the image. Heads of layers without an output projection
    per head are averaged.
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
