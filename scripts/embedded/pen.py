"""Drawing with antialiasing: a pen for shapes in unit coordinates, and random colours."""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # side of an image, pixels
SUPERSAMPLE = 4
Colour = tuple[int, int, int]
Random = np.random.RandomState


def colour(random: Random, hues: tuple[float, float], saturation=(0.6, 0.95), value=(0.65, 0.98)) -> Colour:
    """A colour drawn from a range of hues in degrees (may pass 360), saturations and values in 0..1."""
    h, s, v = (random.uniform(*limits) for limits in (hues, saturation, value))
    r, g, b = colorsys.hsv_to_rgb((h % 360) / 360, s, v)
    return round(255 * r), round(255 * g), round(255 * b)


def shade(base: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter colour."""
    r, g, b = (min(255, round(channel * factor)) for channel in base)
    return r, g, b


class Pen:
    """Draws in an object's own frame (x right, y down, about -1..1) on the image and on the object's mask."""

    def __init__(self, canvas: Image.Image, centre: tuple[float, float], half_side: float, tilt: float, flip: bool):
        self.mask = Image.new("L", canvas.size)
        self._targets = (ImageDraw.Draw(canvas), ImageDraw.Draw(self.mask))
        self._centre, self._scale = centre, half_side * SUPERSAMPLE
        self._cos, self._sin, self._mirror = math.cos(tilt), math.sin(tilt), -1 if flip else 1

    def _place(self, x: float, y: float) -> tuple[int, int]:
        x *= self._mirror
        u, v = x * self._cos - y * self._sin, x * self._sin + y * self._cos
        cx, cy = self._centre
        return round(cx * SUPERSAMPLE + u * self._scale), round(cy * SUPERSAMPLE + v * self._scale)

    def polygon(self, corners: list[tuple[float, float]], fill: Colour) -> None:
        points = [self._place(x, y) for x, y in corners]
        for draw, ink in zip(self._targets, (fill, 255)):
            draw.polygon(points, fill=ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        turns = (2 * math.pi * i / 40 for i in range(40))
        self.polygon([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in turns], fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)
