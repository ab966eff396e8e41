"""Attention maps between grids: keys bilinearly, queries by nearest neighbour; and the adjoint of that."""

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
    """Indices [n] on a device, copied there once: what they are made from lies on the CPU, and no kernel waits."""
    return index if index.device == device else _copied(index.numpy().tobytes(), device)


def positions(tokens: Iterable[int], device: torch.device) -> Tensor:
    """Token positions as indices on a device."""
    return on_device(torch.tensor(list(tokens), dtype=torch.int64), device)


@lru_cache(maxsize=128)
def bilinear_matrix(source: int, target: int) -> Tensor:
    """The linear map that resizing one axis is   [target, source]"""
    eye = torch.eye(source)[None, :, :, None]  # [1, source, source, 1]: one picture per source place
    return F.interpolate(eye, size=(target, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T.contiguous()


@lru_cache(maxsize=128)
def resizing_matrix(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`bilinear_matrix` where it is used."""
    return bilinear_matrix(source, target).to(device, dtype)


@lru_cache(maxsize=128)
def key_masses(source: Grid, target: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What each key adds to the sum of a row that is resized   [S]"""
    down, across = (bilinear_matrix(s, t).sum(0).to(dtype) for s, t in zip(source, target))
    return torch.outer(down, across).flatten().to(device)


@lru_cache(maxsize=128)
def nearest_index(source: Grid, target: Grid) -> Tensor:
    """Which source query each target query copies   [h*w of target]"""
    places = torch.arange(source[0] * source[1], dtype=torch.float64).view(1, 1, *source)
    return F.interpolate(places, size=target, mode="nearest").flatten().long()


@lru_cache(maxsize=128)
def sample_rows(rows: int, count: int) -> Tensor:
    """Some of the rows 0, 1, ..., ascending: one of each of `count` equally long runs; all, if there are no more [n]

    The seed is fixed, so that every image and machine has the same ones.
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
    """The source queries that are used, in ascending order, and for each target query its place among them.

    count   only of so many target queries (`sample_rows`)
    """
    return nearest_of(source, target, count).unique(return_inverse=True)


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
    rows, columns = (resizing_matrix(s, t, maps.device, maps.dtype) for s, t in zip(source, target))
    return (rows.T @ (maps.unflatten(2, target) @ columns)).flatten(2)


def self_map(
    rows: Tensor, queries: Tensor, source: Grid, target: Grid, normalised: bool, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of a self map on another grid   [B, s, S] -> the target queries that they serve [r], [B, r, R]

    queries     of which the rows are, in ascending order, on the CPU   [s]
    normalised  rows brought back to sum 1; otherwise their mass grows with the target's size
    count       only so many target queries (`sample_rows`), and their places among these
    """
    if source == target and count is None:
        return on_device(queries, rows.device), rows
    targets, places = among(nearest_of(source, target, count), queries)
    if len(targets) == 0:  # a small chunk may lie between the rows that are used
        return on_device(targets, rows.device), rows.new_empty(len(rows), 0, target[0] * target[1])
    used, places = places.unique(return_inverse=True)
    targets, used, places = (on_device(index, rows.device) for index in (targets, used, places))
    maps = resize_keys(rows[:, used], source, target)
    if normalised and source != target:
        maps = maps / maps.sum(-1, keepdim=True)
    return targets, maps[:, places]
