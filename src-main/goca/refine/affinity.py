"""Affinity refinement: scores flow along self-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.refine.errors import RefineError
from goca.rescaling import min_max


def affinity(scores: Tensor, space_map: Tensor, order: int) -> Tensor:
    """maps <- S maps, `order` times, then min-max per map.

    scores      [K, h, w]; if the last map is zero everywhere (no background) it is left out and put back;
                a map with a NaN becomes NaN, the others do not notice
    space_map   self-attention S, row = query   [h*w, h*w], or [h, w, h, w]
    order       0 returns the scores as they are
    errors      RefineError
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
