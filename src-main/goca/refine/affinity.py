"""Affinity refinement: scores flow along self-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.rescaling import min_max


def affinity(scores: Tensor, space_map: Tensor, order: int) -> Tensor:
    """maps <- S maps, `order` times, then min-max per map.

    scores      [K, h, w]; if the last map is zero everywhere (no background) it is left out and put back
    space_map   self-attention S, row = query   [h*w, h*w], or [h, w, h, w]
    order       0 returns the scores as they are
    """
    if order == 0 or len(scores) == 0:
        return scores
    empty = bool((scores[-1] == 0).all())
    moved = scores[:-1] if empty else scores
    maps = moved.flatten(1).T  # [h*w, K]
    S = space_map.reshape(len(maps), len(maps)).to(maps)
    for _ in range(order):
        maps = S @ maps
    refined = min_max(maps.T.unflatten(1, scores.shape[1:]))
    return torch.cat([refined, scores[-1:]]) if empty else refined
