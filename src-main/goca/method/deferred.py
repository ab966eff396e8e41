"""Self maps that wait for the reference affinity, each in the smallest of its forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from diffusion_feature import Attention
from diffusion_feature.attention import HeadSum
from torch import Tensor

from goca.method.resizing import on_device

LIFT = 2.0**15  # what a row's largest value becomes in float16: small ones keep their digits down to 2^-29 of it
ROWS = 256  # read back at once
SMALL = 1 << 20  # bytes of a map that is kept as it is


class Waiting(Protocol):
    """A head-mean self map that can be read once its rows are asked for."""

    @property
    def tensors(self) -> list[Tensor]: ...  # what it holds

    def working_bytes(self, copies: int) -> int: ...  # what reading its rows takes besides, and copying them

    def rows(self, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries (ascending) and their rows [B, s, S], until all that are asked for have come; others may come too."""


class Compact:
    """Queries and keys: the map is made when it is asked for, and only the rows that are."""

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


class HalfMap:
    """The map in float16, each row scaled to its largest value: rounding is at most 2^-11 of a value, and unbiased."""

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


class PlainMap:
    """The map as it comes, in float32."""

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


def waiting(attention: Attention, passing: bool) -> Compact | HalfMap | PlainMap:
    """The smaller form; a map where all its rows are being made anyway (`passing`), for the sake of time."""
    tokens = attention.grid[0] * attention.grid[1]
    if 4 * len(attention.query) * tokens**2 <= SMALL:
        return PlainMap()
    compact = Compact(attention)
    smaller = sum(tensor.nbytes for tensor in compact.tensors) < 2 * len(attention.query) * tokens**2
    return compact if smaller and not passing else HalfMap(attention)
