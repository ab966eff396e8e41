"""Attention maps between grids: keys bilinearly, queries by nearest neighbour; and the adjoint of that."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


@lru_cache(maxsize=128)
def bilinear_matrix(source: int, target: int) -> Tensor:
    """The linear map that resizing one axis is   [target, source]"""
    eye = torch.eye(source)[None, :, :, None]  # [1, source, source, 1]: one picture per source place
    return F.interpolate(eye, size=(target, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T.contiguous()


@lru_cache(maxsize=128)
def nearest_index(source: Grid, target: Grid) -> Tensor:
    """Which source query each target query copies   [h*w of target]"""
    places = torch.arange(source[0] * source[1], dtype=torch.float64).view(1, 1, *source)
    return F.interpolate(places, size=target, mode="nearest").flatten().long()


@lru_cache(maxsize=128)
def nearest_rows(source: Grid, target: Grid) -> tuple[Tensor, Tensor]:
    """The source queries that are used, in ascending order, and for each target query its place among them."""
    return nearest_index(source, target).unique(return_inverse=True)


def among(wanted: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `wanted` are in `queries` (ascending), and where."""
    places = torch.searchsorted(queries, wanted).clamp_(max=len(queries) - 1)
    found = (queries[places] == wanted).nonzero().flatten()
    return found, places[found]


def resize_maps(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bilinear, each token on its own   [B, S, N] -> [B, R, N]"""
    if source == target:
        return maps
    picture = maps.transpose(1, 2).unflatten(2, source)
    return F.interpolate(picture, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def resize_keys(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bilinear over the key axes   [B, n, S] -> [B, n, R]"""
    if source == target:
        return maps
    return F.interpolate(maps.unflatten(2, source), size=target, mode="bilinear", align_corners=False).flatten(2)


def adjoint_keys(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """The adjoint of `resize_keys`: <maps, resize_keys(x)> = <adjoint_keys(maps), x>   [B, n, R] -> [B, n, S]"""
    if source == target:
        return maps
    rows, columns = (bilinear_matrix(s, t).to(maps) for s, t in zip(source, target))
    return (rows.T @ (maps.unflatten(2, target) @ columns)).flatten(2)


def self_map(rows: Tensor, queries: Tensor, source: Grid, target: Grid, normalised: bool) -> tuple[Tensor, Tensor]:
    """Rows of a self map on another grid   [B, s, S] -> the target queries that they serve [r], [B, r, R]

    queries     of which the rows are, in ascending order   [s]
    normalised  rows brought back to sum 1; otherwise their mass grows with the target's size
    """
    if source == target:
        return queries.to(rows.device), rows
    targets, places = (index.to(rows.device) for index in among(nearest_index(source, target), queries))
    used, places = places.unique(return_inverse=True)
    maps = resize_keys(rows[:, used], source, target)
    if normalised:
        maps = maps / maps.sum(-1, keepdim=True)
    return targets, maps[:, places]
