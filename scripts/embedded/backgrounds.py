"""Backgrounds of the scenes: textures [SIZE, SIZE, 3] float, 0..255."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from embedded.pen import SIZE, Random, colour


def noise(random: Random, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in -1..1: rows x columns random values, resized bilinearly to [SIZE, SIZE, 1]."""
    coarse = Image.fromarray(random.randint(0, 256, (rows, columns)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)
    return smooth[..., None] / 127.5 - 1


def plain(random: Random, hues, saturation, value) -> np.ndarray:
    return np.array(colour(random, hues, saturation, value), np.float64)  # [3]


def sky(random: Random) -> np.ndarray:
    blue = plain(random, (200, 218), (0.35, 0.6), (0.85, 1))
    down = np.linspace(0, 1, SIZE)[:, None, None]
    clouds = np.clip(noise(random, 9, 5) * 1.6 - 0.3, 0, 1)
    sky_colour = blue * (1 - 0.35 * down) + 255 * 0.35 * down
    return sky_colour * (1 - clouds) + 250 * clouds


def wall(random: Random) -> np.ndarray:
    brick = plain(random, (8, 28), (0.35, 0.6), (0.5, 0.75))
    height, width = random.randint(6, 9), random.randint(11, 16)
    y, x = np.mgrid[:SIZE, :SIZE]
    row = y // height
    column = (x + (row % 2) * (width // 2)) // width
    tone = random.uniform(0.85, 1.12, (SIZE, SIZE))[row, column]
    mortar = (y % height == 0) | ((x + (row % 2) * (width // 2)) % width == 0)
    return np.where(mortar[..., None], 205.0, brick * tone[..., None])


def forest(random: Random) -> np.ndarray:
    green = plain(random, (110, 150), (0.5, 0.8), (0.2, 0.35))
    leaves = 1 + 0.45 * noise(random, 20, 20) + 0.25 * noise(random, 6, 6)
    trunks = noise(random, 2, 22) > 0.45
    return np.where(trunks, np.array([62.0, 44.0, 30.0]), green * leaves)


def grass(random: Random) -> np.ndarray:
    green = plain(random, (75, 105), (0.55, 0.85), (0.55, 0.75))
    return green * (1 + 0.28 * noise(random, 16, 64) + 0.12 * noise(random, 5, 5))


def sand(random: Random) -> np.ndarray:
    tan = plain(random, (34, 46), (0.3, 0.5), (0.82, 0.95))
    return tan * (1 + 0.08 * noise(random, 64, 64) + 0.1 * noise(random, 10, 4))


def water(random: Random) -> np.ndarray:
    blue = plain(random, (190, 225), (0.65, 0.9), (0.45, 0.7))
    y = np.arange(SIZE)[:, None, None]
    ripple = np.sin(2 * math.pi * y / random.uniform(5, 8) + 2.5 * noise(random, 6, 6))
    return blue * (1 + 0.22 * ripple)


def road(random: Random) -> np.ndarray:
    grey = plain(random, (200, 260), (0.0, 0.1), (0.3, 0.48))
    y, x = np.mgrid[:SIZE, :SIZE]
    lane, phase = random.randint(46, 60), random.randint(16)
    dash = (abs(y - lane) < 2) & ((x + phase) % 16 < 9)
    return np.where(dash[..., None], 235.0, grey * (1 + 0.12 * noise(random, 64, 64)))


def snow(random: Random) -> np.ndarray:
    white = plain(random, (200, 225), (0.02, 0.08), (0.92, 1))
    return white * (1 + 0.03 * noise(random, 64, 64) - 0.07 * np.clip(noise(random, 6, 4), 0, 1))


UPPER: dict[str, Callable[[Random], np.ndarray]] = {"sky": sky, "wall": wall, "forest": forest}
LOWER: dict[str, Callable[[Random], np.ndarray]] = {
    "grass": grass,
    "sand": sand,
    "water": water,
    "road": road,
    "snow": snow,
}
