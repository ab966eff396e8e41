"""Deferred self-attention: kept compactly until the reference affinity is available.

A small map is kept in float32; a larger one as queries and keys, or in float16, whichever is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from diffusion_feature import Attention
from diffusion_feature.attention import HeadSum
from torch import Tensor

from goca.method.resizing import on_device

LIFT = 2.0**15  # a row's largest value in float16; values down to 2^-29 of it keep their precision
ROWS = 256  # rows read at once
SMALL = 1 << 20  # bytes up to which a map is kept in float32


class Deferred(Protocol):
    """A head-mean self map whose rows are read later."""

    @property
    def tensors(self) -> list[Tensor]: ...  # what is kept

    def working_bytes(self, copies: int) -> int: ...  # further memory for reading and copying rows

    def rows(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries (ascending) and their rows [B, s, S], in chunks that contain all of `queries` and possibly others."""


class DeferredQK:
    """Queries and keys; rows are computed when they are read."""

    def __init__(self, attention: Attention):
        self.attention = attention.compact()

    @property
    def tensors(self) -> list[Tensor]:
        found = [self.attention.query, self.attention.key, self.attention.mask]
        return [tensor for tensor in found if tensor is not None]

    def working_bytes(self, copies: int) -> int:
        return self.attention.working_bytes(copies)

    def rows(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.attention.rows(on_device(queries, self.attention.query.device))
        assert rows.image_keys is not None
        for chunk, (total,) in rows.head_sums([HeadSum(rows.image_keys)]):
            yield queries[chunk], total.div_(rows.heads)


class DeferredHalf:
    """The map in float16, each row scaled to its maximum; rounding is unbiased, and at most 2^-11 of a value."""

    def __init__(self, attention: Attention):
        batch, tokens = len(attention.query), attention.grid[0] * attention.grid[1]
        self.half = attention.query.new_empty(batch, tokens, tokens, dtype=torch.float16)
        self.scale = attention.query.new_empty(batch, tokens, 1, dtype=torch.float32)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.half, self.scale]

    def working_bytes(self, copies: int) -> int:
        return 4 * len(self.half) * min(ROWS, self.half.shape[1]) * self.half.shape[2] * (2 + copies)

    def add(self, queries: Tensor, rows: Tensor) -> None:
        """Consecutive queries [s] and their rows [B, s, S]"""
        where = slice(int(queries[0]), int(queries[-1]) + 1)
        largest = rows.amax(-1, keepdim=True).clamp_(min=1e-30)
        self.half[:, where] = rows * (LIFT / largest)
        self.scale[:, where] = largest / LIFT

    def rows(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in queries.split(ROWS):
            where = on_device(part, self.half.device)
            yield part, self.half[:, where].float().mul_(self.scale[:, where])


class DeferredFull:
    """The map in float32."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    @property
    def tensors(self) -> list[Tensor]:
        return [rows for _, rows in self.parts]

    def working_bytes(self, copies: int) -> int:
        return copies * max(rows.nbytes for rows in self.tensors)

    def add(self, queries: Tensor, rows: Tensor) -> None:
        self.parts.append((queries, rows))

    def rows(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.parts


def defer(attention: Attention, every_row: bool) -> DeferredQK | DeferredHalf | DeferredFull:
    """The form that needs the least memory; if every row is computed anyway, a map, which saves a second pass."""
    tokens = attention.grid[0] * attention.grid[1]
    if 4 * len(attention.query) * tokens**2 <= SMALL:
        return DeferredFull()
    compact = DeferredQK(attention)
    smaller = sum(tensor.nbytes for tensor in compact.tensors) < 2 * len(attention.query) * tokens**2
    return compact if smaller and not every_row else DeferredHalf(attention)
