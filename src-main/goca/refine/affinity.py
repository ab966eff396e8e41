"""Affinity refinement: propagate scores along self-attention, or along the similarity of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.method.layers import Reference
from goca.method.rescaling import min_max
from goca.method.resizing import Grid, self_map
from goca.refine.errors import RefineError


def affinity(scores: Tensor, space_map: Tensor, order: int) -> Tensor:
    """Propagate scores along self-attention: maps <- S maps, `order` times, then min-max per map.

    scores      [K, h, w]; a last map of zeros (no background) is left out and put back; NaN maps stay NaN and do
                not affect the others
    space_map   self-attention S, row = query   [h*w, h*w], or [h, w, h, w]
    order       number of multiplications; 0 returns the scores unchanged
    returns     [K, h, w] in 0..1, a last map of zeros included
    errors      RefineError

    >>> affinity(torch.rand(3, 16, 16), torch.rand(256, 256).softmax(-1), order=2).shape
    torch.Size([3, 16, 16])
    """
    if order == 0 or len(scores) == 0:
        return scores
    if order < 0 or space_map.numel() != scores[0].numel() ** 2:
        raise RefineError(
            f"affinity of order {order} on maps {list(scores.shape)} with a space map {list(space_map.shape)}; "
            f"expected an order of at least 0 and a space map {[scores[0].numel()] * 2}"
        )
    empty = bool((scores[-1] == 0).all())
    moved = scores[:-1] if empty else scores
    maps = moved.flatten(1).T  # [h*w, K]
    S = space_map.reshape(len(maps), len(maps)).to(maps)
    for _ in range(order):
        maps = S @ maps
    refined = min_max(maps.T.unflatten(1, scores.shape[1:]))
    return torch.cat([refined, scores[-1:]]) if empty else refined


def activation_affinity(scores: Tensor, dense: Tensor, order: int) -> Tensor:
    """`affinity` along the similarity of a dense feature, for models or layers without a usable self map.

    scores  [K, h, w];  dense  [C, h', w'];  order  as in `affinity`
    errors  RefineError
    """
    if order == 0 or len(scores) == 0:
        return scores
    return affinity(scores, activation_similarity(dense, (scores.shape[1], scores.shape[2])), order)


def activation_similarity(dense: Tensor, grid: Grid) -> Tensor:
    """softmax(F F^T / sqrt c) of a dense feature, resized to a grid: a space map whose rows sum to 1.

    dense    F  [C, h, w], finite
    grid     (height, width); keys are resized bilinearly, queries by nearest neighbour, and rows normalised to sum 1
    returns  [H*W, H*W], row = query
    errors   RefineError
    """
    if dense.ndim != 3 or not bool(dense.isfinite().all()):
        raise RefineError(f"the dense feature has the shape {list(dense.shape)}; expected finite values [C, h, w]")
    reference = Reference(dense[None], first_only=False, normalised=True)
    every = torch.arange(reference.grid[0] * reference.grid[1])
    targets, rows = self_map(reference.affinity, every, reference.grid, grid, normalised=True)
    found = torch.empty_like(rows[0])
    found[targets] = rows[0]
    return found
