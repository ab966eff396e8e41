"""Bilinear upsampling in numpy that equals torch's to the last bit.

A pixel belongs to the class that wins a comparison of float32 numbers, so counts are only reproducible if these
numbers are. This is `torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)` on a CPU with
fused multiply-add, without torch: a fused operation is carried out in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # numbers that are upsampled at once: they stay in the processor's cache
SMALL = 128  # torch sums the four neighbours in another order where height + width are at most this, or n is 3

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
        return cls(low, np.minimum(low + 1, size - 1), (source - low.astype(np.float32)).clip(0, 1))

    def __getitem__(self, part: slice) -> Axis:
        return Axis(self.low[part], self.high[part], self.weight[part])

    def strips(self, part: slice) -> Iterator[slice]:
        """The outputs of `part`, cut where the source pixel changes."""
        changes = np.flatnonzero(np.diff(self.low[part])) + 1 + part.start
        starts = [part.start, *changes.tolist()]
        yield from map(slice, starts, [*starts[1:], part.stop])


def upsample(maps: Floats, height: int, width: int) -> Floats:
    """Maps [n, g, h] brought to [n, height, width], float32."""
    return np.concatenate([block.copy() for _, block in upsampled_blocks(maps, height, width)], axis=1)


def upsampled_blocks(maps: Floats, height: int, width: int) -> Iterator[tuple[slice, Floats]]:
    """The same, some rows at a time: pairs of (rows, maps [n, rows, width]). A block is overwritten by the next one."""
    n, g_height, g_width = maps.shape
    rows, columns = Axis.between(g_height, height), Axis.between(g_width, width)
    step = max(1, BLOCK // max(1, n * width))
    parts = [slice(top, min(top + step, height)) for top in range(0, height, step)]
    if n == 3 or height + width <= SMALL:
        yield from ((part, _four_corners(maps, rows[part], columns)) for part in parts)
    else:
        yield from _rows_of_columns(maps, rows, columns, parts)


def _rows_of_columns(maps: Floats, rows: Axis, columns: Axis, parts: list[slice]) -> Iterator[tuple[slice, Floats]]:
    """Along the columns first, once per source row; then along the rows, a strip between two source rows at a time."""
    wide = maps[:, :, columns.low] * (np.float32(1) - columns.weight).astype(np.float64)  # [n, g, width]
    wide = (wide + maps[:, :, columns.high] * columns.weight).astype(np.float32)
    exact = wide.astype(np.float64)
    low_weight = (np.float32(1) - rows.weight).astype(np.float64)[:, None]
    shape = (len(maps), max(part.stop - part.start for part in parts), wide.shape[2])
    total, second, block = np.empty(shape, np.float64), np.empty(shape, np.float32), np.empty(shape, np.float32)
    for part in parts:
        for strip in rows.strips(part):
            here = slice(strip.start - part.start, strip.stop - part.start)
            low, high = rows.low[strip.start], rows.high[strip.start]
            np.multiply(exact[:, low, None], low_weight[strip], out=total[:, here])
            np.multiply(wide[:, high, None], rows.weight[strip, None], out=second[:, here])
        size = part.stop - part.start
        np.add(total[:, :size], second[:, :size], out=total[:, :size])
        np.copyto(block[:, :size], total[:, :size], casting="same_kind")
        yield part, block[:, :size]


def _four_corners(maps: Floats, rows: Axis, columns: Axis) -> Floats:
    """The sum of four weighted neighbours, one fused operation after the other, the upper right one first."""
    down, right = rows.weight[:, None], columns.weight
    up, left = np.float32(1) - down, np.float32(1) - right
    above, below = maps[:, rows.low], maps[:, rows.high]
    total = above[:, :, columns.high] * (up * right)
    for neighbours, weight in (
        (above[:, :, columns.low], up * left),
        (below[:, :, columns.low], down * left),
        (below[:, :, columns.high], down * right),
    ):
        total = (neighbours * weight.astype(np.float64) + total).astype(np.float32)
    return total
