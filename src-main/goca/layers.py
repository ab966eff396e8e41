"""Layer-wise aggregation: how well a layer's self-attention agrees with the reference affinity of the features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goca.resizing import Grid, adjoint_keys, bilinear_matrix, nearest_rows, self_map


class Reference:
    """Ref = softmax(F F^T / sqrt c), made once; every layer is compared with it.

    feature      F                                      [B, c, h, w]
    first_only   only the feature's first channel enters, so c = 1
    normalised   rows of a resized self map are brought back to sum 1
    """

    def __init__(self, feature: Tensor, first_only: bool, normalised: bool):
        feature = feature[:, :1] if first_only else feature
        F = feature.float().flatten(2)  # [B, c, R]
        self.grid: Grid = (feature.shape[2], feature.shape[3])
        self.affinity = ((F * F.shape[1] ** -0.5).transpose(1, 2) @ F).softmax(-1)  # [B, R, R]
        self.normalised = normalised
        self._adjoints: dict[Grid, Tensor] = {}

    def rows(self, grid: Grid) -> Tensor | None:
        """The queries of a self map on `grid` that a comparison needs (None: all)."""
        rows = nearest_rows(grid, self.grid)[0]
        return rows if rows is None else rows.to(self.affinity.device)

    def adjoint(self, grid: Grid) -> Tensor:
        """Ref brought to another grid by the adjoint of resizing, once per grid   [B, n, S]

        <Ref, self_map(rows)> = <adjoint, rows>, the normalisation of rows apart.
        """
        if grid not in self._adjoints:
            keys = adjoint_keys(self.affinity, grid, self.grid)  # [B, R, S]
            if grid != self.grid:
                places = nearest_rows(grid, self.grid)[1].to(keys.device)
                keys = keys.new_zeros(len(keys), int(places.max()) + 1, keys.shape[2]).index_add_(1, places, keys)
            self._adjoints[grid] = keys
        return self._adjoints[grid]

    def mass(self, grid: Grid) -> Tensor | None:
        """What each key adds to a resized row's sum   [S]; None where nothing is to be normalised"""
        if not self.normalised or grid == self.grid:
            return None
        down, across = (bilinear_matrix(s, t).sum(0).to(self.affinity) for s, t in zip(grid, self.grid))
        return torch.outer(down, across).flatten()

    def resized(self, rows: Tensor, grid: Grid) -> Tensor:
        """[B, n, S] -> [B, R, R]"""
        return self_map(rows, grid, self.grid, self.normalised)


def dot_product(reference: Reference, rows: Tensor, grid: Grid) -> Tensor:
    """sum Ref * S, without resizing S."""
    agreement = (reference.adjoint(grid) * rows).sum(-1)  # [B, n]
    mass = reference.mass(grid)
    return (agreement if mass is None else agreement / (rows @ mass)).sum(-1)


def mse(reference: Reference, rows: Tensor, grid: Grid) -> Tensor:
    """1 / sum_i |Ref_i - S_i|"""
    return 1 / (reference.affinity - reference.resized(rows, grid)).norm(dim=-1).sum(-1)


def iou_like(reference: Reference, rows: Tensor, grid: Grid) -> Tensor:
    """sum min / (sum max + 1e-4)"""
    resized = reference.resized(rows, grid)
    smaller, larger = (pick(reference.affinity, resized).sum((1, 2)) for pick in (torch.minimum, torch.maximum))
    return smaller / (larger + 1e-4)


# rule -> similarity of (reference, rows of the layer's head-mean self map [B, n, S], its grid) -> [B];
# None: all layers alike, no reference needed
LAYER_RULES: dict[str, Callable[[Reference, Tensor, Grid], Tensor] | None] = {
    "dot-product similarity": dot_product,
    "mse": mse,
    "iou-like": iou_like,
    "vanilla": None,
}


def layer_weights(similarities: Tensor) -> Tensor:
    """Similarities [B, M], clamped at 0 and divided by their sum over layers."""
    clamped = similarities.clamp(min=0)
    return clamped / clamped.sum(-1, keepdim=True)
