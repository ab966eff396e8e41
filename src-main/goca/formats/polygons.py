"""Outlines of masks as polygons, for formats without masks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

LEAST = 3  # corners of a polygon


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the true pixels; holes are joined to their outline by a seam.

    mask     bool [H, W]
    returns  [corners, 2] each, (x, y) in pixels: the left edge of the image is 0, its right edge W. Filled by the
             even-odd rule, they cover the pixels whose centres they contain: exactly the mask.
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(mask.astype(float), 1)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    filled: Any = generator.filled(0.5, 2.0)
    points, offsets = filled
    height, width = mask.shape
    found = []
    for corners, parts in zip(points, offsets):
        rings = [
            corners[start : stop - 1] - 0.5 for start, stop in itertools.pairwise(parts)
        ]  # the last repeats the first
        ring = rings[0]
        for hole in rings[1:]:
            ring = joined(ring, hole)
        if len(ring) >= LEAST:
            found.append(ring.clip(0, [width, height]))
    return found


def joined(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring of both: from the ring's nearest corner to the hole, around it, and back along the same seam."""
    distance = ((ring[:, None] - hole[None]) ** 2).sum(-1)
    at, start = np.unravel_index(distance.argmin(), distance.shape)
    around = np.concatenate([hole[start:], hole[: start + 1]])
    return np.concatenate([ring[: at + 1], around, ring[at:]])
