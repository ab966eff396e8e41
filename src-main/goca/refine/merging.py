"""Map merging (after DiffSeg, Tian et al. 2024): similar self-attention maps become one region."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.method.resizing import Grid
from goca.refine.errors import RefineError
from goca.refine.images import check_maps, of_finite

EPSILON = 1e-4  # added before the logarithm
ACCEPTED = 0.5  # a region is given to its best map only if the map's mean in it is higher


def merge_maps(scores: Tensor, space_map: Tensor, threshold: float = 2e-4, stride: int = 4, rounds: int = 3) -> Tensor:
    """Merge self-attention into regions, and give each region to the map with the highest mean in it.

    scores      [n, h, w]  in 0..1
    space_map   self-attention, row = query   [h*w, h*w] or [h, w, h, w]
    threshold, stride, rounds   see `merge_proposals`
    returns     [n, h, w]  0 or 1; all maps are 0 in a region where no mean is above 0.5. NaN maps stay NaN
    errors      RefineError

    >>> merge_maps(torch.rand(3, 16, 16), torch.rand(256, 256).softmax(-1)).shape
    torch.Size([3, 16, 16])
    """
    check_maps(scores)
    h, w = scores.shape[1:]
    regions = merge_proposals(space_map, (h, w), threshold, stride, rounds).flatten(1).argmax(0)  # [h*w]

    def assign(maps: Tensor) -> Tensor:
        if len(maps) == 0:
            return maps
        members = torch.nn.functional.one_hot(regions).to(maps)  # [h*w, P]
        means = maps.flatten(1) @ members / members.sum(0).clamp(min=1)  # [n, P]
        best, owner = means.max(0)
        chosen = torch.where(best > ACCEPTED, owner, -1)[regions]  # [h*w]
        return (chosen == torch.arange(len(maps), device=maps.device)[:, None]).to(maps).view_as(maps)

    return of_finite(scores, assign)


def merge_proposals(space_map: Tensor, grid: Grid, threshold: float = 2e-4, stride: int = 4, rounds: int = 3) -> Tensor:
    """Merge the self-attention maps of every `stride`-th pixel while they are similar.

    space_map   row = query   [h*w, h*w] or [h, w, h, w]
    threshold   maps whose distance (`divergence`) is smaller are merged into their mean, normalised to sum 1
    rounds      round 1 merges every similar pixel into each proposal; later rounds merge proposals greedily, in order
    returns     [P, h, w]  each sums to 1; the argmax over P gives regions
    errors      RefineError
    """
    h, w = grid
    if space_map.numel() != (h * w) ** 2:
        found, expected = list(space_map.shape), f"{[h * w] * 2} or {[h, w] * 2}"
        raise RefineError(f"the space map has the shape {found}; expected {expected}")
    if not threshold >= 0 or stride < 1 or rounds < 1:
        raise RefineError(f"threshold={threshold}, stride={stride}, rounds={rounds}; expected >= 0, >= 1, >= 1")
    maps = space_map.reshape(h * w, h * w).float()
    if not bool(maps.isfinite().all()):
        raise RefineError("the space map contains NaN or infinite values; merging needs finite ones")
    anchors = torch.arange(h * w, device=maps.device).view(h, w)[::stride, ::stride].flatten()
    alike = divergence(maps[anchors], maps) < threshold  # [A, h*w]
    alike[torch.arange(len(anchors)), anchors] = True
    proposals = normalised(alike.to(maps) @ maps / alike.sum(1, keepdim=True))
    for _ in range(rounds - 1):
        proposals = merge_alike(proposals, threshold)
    return proposals.unflatten(1, (h, w))


def merge_alike(proposals: Tensor, threshold: float) -> Tensor:
    """One greedy round: each remaining proposal, in order, is merged with the remaining ones similar to it   [P, S]"""
    alike = divergence(proposals, proposals) < threshold
    left = torch.ones(len(proposals), dtype=torch.bool, device=proposals.device)
    merged = []
    for number in range(len(proposals)):
        if left[number]:
            members = alike[number] & left
            members[number] = True
            merged.append(proposals[members].mean(0))
            left &= ~members
    return normalised(torch.stack(merged))


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler: mean over pixels of (p - q) (log p - log q)   [P, S], [Q, S] -> [P, Q]"""
    log_p, log_q = (p + EPSILON).log(), (q + EPSILON).log()
    own = (p * log_p).sum(1)[:, None] + (q * log_q).sum(1)
    return ((own - p @ log_q.T - log_p @ q.T) / p.shape[1]).clamp(min=0)


def normalised(maps: Tensor) -> Tensor:
    return maps / maps.sum(1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
