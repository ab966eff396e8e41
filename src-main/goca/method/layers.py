"""Layer-wise aggregation (arXiv 2603.06178): a layer's weight is its agreement with a reference affinity.

    Ref = softmax(F F^T / sqrt(c)),    w_m = sum Ref * S_m,   clamped at 0 and normalised over layers

F are the features of one layer, S_m is the head-mean self-attention of layer m at the resolution of Ref. Resizing is
linear, so the default rule applies its adjoint to Ref and never resizes S_m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from goca.method.resizing import (
    Grid,
    adjoint_keys,
    among,
    key_masses,
    nearest_rows,
    on_device,
    sample_rows,
    self_map,
)


class Reference:
    """The reference affinity softmax(F F^T / sqrt(c))   [B, R, R], or some of its rows [B, n, R]; computed once.

    feature      F                                      [B, c, h, w]
    first_only   only the feature's first channel enters, so c = 1
    normalised   rows of a resized self map are normalised to sum 1
    count        how many rows (`sample_rows`); None: all
    """

    def __init__(self, feature: Tensor, first_only: bool, normalised: bool, count: int | None = None):
        feature = feature[:, :1] if first_only else feature
        F = feature.float().flatten(2)  # [B, c, R]
        self.grid: Grid = (feature.shape[2], feature.shape[3])
        queries = F if count is None else F[..., on_device(sample_rows(F.shape[2], count), F.device)]
        logits = (queries * F.shape[1] ** -0.5).transpose(1, 2) @ F
        self.affinity = torch.softmax(logits, -1, out=logits)  # [B, n, R]
        self.normalised, self.count = normalised, count
        self._adjoints: dict[Grid, Tensor] = {}
        self._masses: dict[Grid, Tensor] = {}

    def adjoint(self, grid: Grid) -> Tensor:
        """Ref on another grid, by the adjoint of resizing; computed once per grid   [B, n, S]

        <Ref, self_map(rows)> = <adjoint, rows>, up to the normalisation of rows.
        """
        if grid not in self._adjoints:
            keys = adjoint_keys(self.affinity, grid, self.grid)  # [B, n, S]
            if grid != self.grid:
                wanted, places = nearest_rows(grid, self.grid, self.count)
                places = on_device(places, keys.device)
                keys = keys.new_zeros(len(keys), len(wanted), keys.shape[2]).index_add_(1, places, keys)
            self._adjoints[grid] = keys
        return self._adjoints[grid]

    def mass(self, grid: Grid) -> Tensor | None:
        """The contribution of each key to the sum of a resized row   [S]; None if rows need no normalisation"""
        if not self.normalised or grid == self.grid:
            return None
        if grid not in self._masses:
            self._masses[grid] = key_masses(grid, self.grid, self.affinity.device, self.affinity.dtype)
        return self._masses[grid]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.affinity, *self._adjoints.values()]


@dataclass(frozen=True)
class Similarity:
    """Streaming similarity between the reference affinity and a layer's mean self-attention.

    update    (reference, queries [s] in ascending order, their rows [B, s, S], the layer's grid) -> [B, k]
    finalize  the sum of the updates over all chunks of rows [B, k] -> [B]
    """

    update: Callable[[Reference, Tensor, Tensor, Grid], Tensor]
    finalize: Callable[[Tensor], Tensor]


def dot_product(reference: Reference, queries: Tensor, rows: Tensor, grid: Grid) -> Tensor:
    """sum Ref * S, without resizing S."""
    wanted = nearest_rows(grid, reference.grid, reference.count)[0]
    adjoint, mass = reference.adjoint(grid), reference.mass(grid)
    if not torch.equal(wanted, queries):
        used, places = (on_device(index, rows.device) for index in among(wanted, queries))
        rows, adjoint = rows[:, places], adjoint[:, used]
    agreement = torch.linalg.vecdot(adjoint, rows)  # [B, n]
    return (agreement if mass is None else agreement / (rows @ mass)).sum(-1, keepdim=True)


def distance(reference: Reference, queries: Tensor, rows: Tensor, grid: Grid) -> Tensor:
    """sum_i |Ref_i - S_i|"""
    targets, resized = self_map(rows, queries, grid, reference.grid, reference.normalised, reference.count)
    return (reference.affinity[:, targets] - resized).norm(dim=-1).sum(-1, keepdim=True)


def overlap(reference: Reference, queries: Tensor, rows: Tensor, grid: Grid) -> Tensor:
    """sum min and sum max of Ref and S"""
    targets, resized = self_map(rows, queries, grid, reference.grid, reference.normalised, reference.count)
    expected = reference.affinity[:, targets]
    return torch.stack([pick(expected, resized).sum((1, 2)) for pick in (torch.minimum, torch.maximum)], dim=-1)


# None: equal weights, without a reference
LAYER_RULES: dict[str, Similarity | None] = {
    "dot-product similarity": Similarity(dot_product, lambda sums: sums[:, 0]),
    "mse": Similarity(distance, lambda sums: 1 / sums[:, 0]),
    "iou-like": Similarity(overlap, lambda sums: sums[:, 0] / (sums[:, 1] + 1e-4)),
    "vanilla": None,
}


class LayerComparison:
    """Similarity of one layer to the reference under several rules, from chunks of its head-mean self map."""

    def __init__(self, reference: Reference, rules: Iterable[str], grid: Grid):
        self.reference, self.grid = reference, grid
        self.rules = {rule: similarity for rule in rules if (similarity := LAYER_RULES[rule]) is not None}
        self.sums: dict[str, Tensor] = {}
        self.queries = nearest_rows(grid, reference.grid, reference.count)[0]  # the rows that are needed

    def add(self, queries: Tensor, rows: Tensor) -> None:
        """Add a chunk: queries [s], ascending, and their rows [B, s, S]; rows that are not needed may be among them."""
        for rule, similarity in self.rules.items():
            part = similarity.update(self.reference, queries, rows, self.grid)
            self.sums[rule] = self.sums[rule] + part if rule in self.sums else part

    def similarities(self) -> dict[str, Tensor]:
        """Layer rule -> similarity   [B]"""
        return {rule: similarity.finalize(self.sums[rule]) for rule, similarity in self.rules.items()}


def layer_weights(similarities: Tensor) -> Tensor:
    """Weights of M layers from their similarities: clamped at 0, then divided by their sum.

    similarities   [B, M]
    returns        [B, M], sum 1; NaN where no similarity is positive

    >>> layer_weights(torch.tensor([[3.0, 1.0, -2.0]]))
    tensor([[0.7500, 0.2500, 0.0000]])
    """
    clamped = similarities.clamp(min=0)
    return clamped / clamped.sum(-1, keepdim=True)
