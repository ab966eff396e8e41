"""Bilinear upsampling in numpy that equals torch's to the last bit, and a fast form with a bounded error.

A pixel belongs to the class that wins a comparison of float32 numbers, so counts are only reproducible if these
numbers are. This is `torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)` on a CPU with
fused multiply-add, without torch: a fused operation is computed in float64 and rounded once. If a comparison is not
close, plain float32 is sufficient and many times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18  # numbers that are upsampled at once: they stay in the processor's cache
TILE, LINE = 32, 1 << 14  # outputs of one matrix product: rows or columns at most, and numbers in those rows
SMALL = 128  # torch sums the four neighbours in another order where height + width are at most this, or n is 3
ERROR = 2.0**-20  # bound on |quick - exact| / max|x|: eight roundings of float32

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """Where the pixels of one output axis come from: out = (1 - weight) * x[low] + weight * x[high]."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: Floats

    @classmethod
    def between(cls, size: int, target: int) -> Axis:
        """From `size` source pixels to `target` pixels, pixel centres aligned (not the corners)."""
        if size == target:  # a copy; the neighbour must not be touched, it could be NaN
            same = np.arange(target)
            return cls(same, same, np.zeros(target, np.float32))
        scale = np.float32(size) / np.float32(target)
        centre = np.arange(target, dtype=np.float32) + np.float32(0.5)
        source = (np.float64(scale) * centre.astype(np.float64) - 0.5).astype(np.float32).clip(0)
        low = np.minimum(source.astype(np.int64), size - 1)
        return cls(low, np.minimum(low + 1, size - 1), source - low.astype(np.float32))

    def __getitem__(self, part: slice | NDArray[np.integer]) -> Axis:
        return Axis(self.low[part], self.high[part], self.weight[part])

    def tiles(self, part: slice, size: int) -> Iterator[tuple[slice, slice, Floats]]:
        """Outputs of `part` in tiles: (outputs, source pixels, weights), with x[outputs] = weights @ x[source].

        Products of this size are not divided among threads, which would cost more than the product.
        """
        for start in range(part.start, part.stop, size):
            here = slice(start, min(start + size, part.stop))
            source = slice(self.low[here.start], self.high[here.stop - 1] + 1)
            weights = np.zeros((here.stop - start, source.stop - source.start), np.float32)
            each = np.arange(len(weights))
            weights[each, self.low[here] - source.start] = 1 - self.weight[here]
            weights[each, self.high[here] - source.start] += self.weight[here]
            yield here, source, weights

    def as_rows(self) -> Axis:
        """The vertical axis, shaped for broadcasting with a horizontal one."""
        return Axis(self.low[:, None], self.high[:, None], self.weight[:, None])


@dataclass(frozen=True)
class Bilinear:
    """Upsampling from a grid [g, h] to [height, width]; `corners`: torch's order of summing for small or three maps."""

    rows: Axis
    columns: Axis
    corners: bool

    @classmethod
    def between(cls, n: int, grid: tuple[int, ...], height: int, width: int) -> Bilinear:
        """The form that torch uses for n maps of that grid."""
        corners = n == 3 or height + width <= SMALL
        return cls(Axis.between(grid[0], height), Axis.between(grid[1], width), corners)

    def at(self, maps: Floats, rows: NDArray[np.integer] | slice, columns: NDArray[np.integer] | slice) -> Floats:
        """The exact values at output pixels; rows and columns are indices that broadcast against each other."""
        return (_four_corners if self.corners else _two_passes)(maps, self.rows[rows], self.columns[columns])

    def blocks(self, n: int) -> Iterator[slice]:
        """Blocks of output rows in which n maps are upsampled."""
        height, width = len(self.rows.low), len(self.columns.low)
        step = max(1, BLOCK // (n * width))
        yield from (slice(top, min(top + step, height)) for top in range(0, height, step))

    def exactly(self, maps: Floats) -> Iterator[tuple[slice, Floats]]:
        """Pairs of (rows, maps [n, rows, width])."""
        across, down = self.columns, self.rows.as_rows()
        order = _four_corners if self.corners else _two_passes
        yield from ((part, order(maps, down[part], across)) for part in self.blocks(len(maps)))

    def quickly(self, maps: Floats) -> Iterator[tuple[slice, Floats]]:
        """`exactly` up to ERROR * max|maps|, for finite maps: each pass is a product with a matrix of weights."""
        wide = np.empty((*maps.shape[:2], len(self.columns.low)), np.float32)  # [n, g, width]
        for here, source, weights in self.columns.tiles(slice(0, wide.shape[2]), TILE):
            np.matmul(maps[:, :, source], weights.T, out=wide[:, :, here])
        for part in self.blocks(len(maps)):
            block = np.empty((len(maps), part.stop - part.start, wide.shape[2]), np.float32)
            for here, source, weights in self.rows.tiles(part, max(1, min(TILE, LINE // wide.shape[2]))):
                np.matmul(weights, wide[:, source], out=block[:, here.start - part.start : here.stop - part.start])
            yield part, block


def upsample(maps: Floats, height: int, width: int) -> Floats:
    """Upsample maps [n, g, h] to [n, height, width], float32, exactly."""
    bilinear = Bilinear.between(len(maps), maps.shape[1:], height, width)
    return np.concatenate([block for _, block in bilinear.exactly(maps)], axis=1)


def _two_passes(maps: Floats, rows: Axis, columns: Axis) -> Floats:
    """Interpolate along the columns, then along the rows; in each pass the lower neighbour's product is fused."""
    left = (np.float32(1) - columns.weight).astype(np.float64)
    up = (np.float32(1) - rows.weight).astype(np.float64)
    above, below = (
        (maps[:, row, columns.low] * left + maps[:, row, columns.high] * columns.weight).astype(np.float32)
        for row in (rows.low, rows.high)
    )
    return (above * up + below * rows.weight).astype(np.float32)


def _four_corners(maps: Floats, rows: Axis, columns: Axis) -> Floats:
    """The sum of four weighted neighbours, by consecutive fused operations, starting at the upper right."""
    down, right = rows.weight, columns.weight
    up, left = np.float32(1) - down, np.float32(1) - right
    total = maps[:, rows.low, columns.high] * (up * right)
    for row, column, weight in (
        (rows.low, columns.low, up * left),
        (rows.high, columns.low, down * left),
        (rows.high, columns.high, down * right),
    ):
        total = (maps[:, row, column] * weight.astype(np.float64) + total).astype(np.float32)
    return total
