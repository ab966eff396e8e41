"""Resize attention maps between grids: keys bilinearly, queries by nearest neighbour; and the adjoint of this."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


@lru_cache(maxsize=1024)
def _copied(content: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.int64).to(device)


def on_device(index: Tensor, device: torch.device) -> Tensor:
    """Indices [n], copied to a device only once, so that the device never waits for the CPU."""
    return index if index.device == device else _copied(index.numpy().tobytes(), device)


def positions(tokens: Iterable[int], device: torch.device) -> Tensor:
    """Token positions as indices on a device."""
    return on_device(torch.tensor(list(tokens), dtype=torch.int64), device)


@lru_cache(maxsize=128)
def bilinear_matrix(source: int, target: int) -> Tensor:
    """Resizing of one axis, as a matrix   [target, source]"""
    eye = torch.eye(source)[None, :, :, None]  # [1, source, source, 1]: one image per source position
    return F.interpolate(eye, size=(target, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T.contiguous()


@lru_cache(maxsize=128)
def resizing_matrix(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`bilinear_matrix` on a device, in a dtype."""
    return bilinear_matrix(source, target).to(device, dtype)


@lru_cache(maxsize=128)
def key_masses(source: Grid, target: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The contribution of each key to the sum of a resized row   [S]"""
    down, across = (bilinear_matrix(s, t).sum(0).to(dtype) for s, t in zip(source, target))
    return torch.outer(down, across).flatten().to(device)


@lru_cache(maxsize=128)
def nearest_index(source: Grid, target: Grid) -> Tensor:
    """The source query that each target query copies   [h*w of target]"""
    places = torch.arange(source[0] * source[1], dtype=torch.float64).view(1, 1, *source)
    return F.interpolate(places, size=target, mode="nearest").flatten().long()


@lru_cache(maxsize=128)
def sample_rows(rows: int, count: int) -> Tensor:
    """A sample of the rows 0, 1, ..., ascending: one from each of `count` runs of equal length, or all rows   [n]

    The seed is fixed, so every image and machine uses the same rows.
    """
    edges = torch.arange(min(count, rows) + 1) * rows // min(count, rows)
    within = torch.rand(len(edges) - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return edges[:-1] + (within * edges.diff()).long()


@lru_cache(maxsize=128)
def nearest_of(source: Grid, target: Grid, count: int | None = None) -> Tensor:
    """`nearest_index` for `count` target queries (`sample_rows`), or for all   [n]"""
    index = nearest_index(source, target)
    return index if count is None else index[sample_rows(len(index), count)]


@lru_cache(maxsize=128)
def nearest_rows(source: Grid, target: Grid, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The source queries that are used, ascending, and for each target query the position of its source among them.

    count   use only a sample of that many target queries (`sample_rows`)
    """
    return nearest_of(source, target, count).unique(return_inverse=True)


def among(wanted: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of those of `wanted` that are in `queries` (ascending), and their positions in it."""
    places = torch.searchsorted(queries, wanted).clamp_(max=len(queries) - 1)
    found = (queries[places] == wanted).nonzero().flatten()
    return found, places[found]


def resize_maps(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bilinear resizing of each token's map   [B, S, N] -> [B, R, N]"""
    if source == target:
        return maps
    images = maps.transpose(1, 2).unflatten(2, source)
    return F.interpolate(images, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def resize_keys(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bilinear resizing of the key axis   [B, n, S] -> [B, n, R]"""
    if source == target:
        return maps
    return F.interpolate(maps.unflatten(2, source), size=target, mode="bilinear", align_corners=False).flatten(2)


def adjoint_keys(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """The adjoint of `resize_keys`: <maps, resize_keys(x)> = <adjoint_keys(maps), x>   [B, n, R] -> [B, n, S]"""
    if source == target:
        return maps
    rows, columns = (resizing_matrix(s, t, maps.device, maps.dtype) for s, t in zip(source, target))
    return (rows.T @ (maps.unflatten(2, target) @ columns)).flatten(2)


def self_map(
    rows: Tensor, queries: Tensor, source: Grid, target: Grid, normalised: bool, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Resize rows of a self map   [B, s, S] -> the target queries that copy them [r], their rows [B, r, R]

    queries     the queries of the rows, ascending, on the CPU   [s]
    normalised  whether rows are normalised to sum 1; otherwise their sum grows with the target's size
    count       use only a sample of that many target queries (`sample_rows`), which are then numbered from 0
    """
    if source == target and count is None:
        return on_device(queries, rows.device), rows
    targets, places = among(nearest_of(source, target, count), queries)
    if len(targets) == 0:  # a small chunk may contain no row that is used
        return on_device(targets, rows.device), rows.new_empty(len(rows), 0, target[0] * target[1])
    used, places = places.unique(return_inverse=True)
    targets, used, places = (on_device(index, rows.device) for index in (targets, used, places))
    maps = resize_keys(rows[:, used], source, target)
    if normalised and source != target:
        maps = maps / maps.sum(-1, keepdim=True)
    return targets, maps[:, places]
