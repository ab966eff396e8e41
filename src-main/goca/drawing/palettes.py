"""Palettes for label maps, and overlays on the image. Needs only numpy and PIL."""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb
from functools import lru_cache
from typing import Any

import numpy as np
from diffusion_feature.images import is_file, read_image
from PIL import Image

from goca.errors import GocaError

VOID = 255
Array = np.ndarray


class DrawingError(GocaError, ValueError):
    """An image, label map, heat map or palette cannot be drawn."""


def voc_palette(size: int = 256) -> Array:
    """PASCAL VOC's colour map, uint8 [size, 3]: bit k of the id's three-bit digits goes to bit 7-k of R, G, B."""
    ids = np.arange(size)
    colours = np.zeros((size, 3), dtype=np.int64)
    for digit in range(8):
        for channel in range(3):
            colours[:, channel] |= (ids >> (3 * digit + channel) & 1) << (7 - digit)
    return colours.astype(np.uint8)


def bright_palette(size: int = 256) -> Array:
    """Colours for a white page: hues a golden angle apart; class 0 light grey, void white. uint8 [size, 3]."""
    return _bright_palette(size).copy()


@lru_cache(maxsize=8)
def _bright_palette(size: int) -> Array:
    ids = np.arange(max(size, VOID + 1))
    hue = (0.02 + 0.618034 * (ids - 1)) % 1
    saturation, value = np.choose(ids // 12 % 3, [0.72, 0.5, 0.9]), np.choose(ids // 6 % 2, [0.9, 0.72])
    colours = 255 * np.array([hsv_to_rgb(*each) for each in zip(hue, saturation, value)])
    colours[0], colours[VOID] = 236, 255
    return colours[:size].round().astype(np.uint8)


PALETTES: dict[str, Callable[[int], Array]] = {"voc": voc_palette, "bright": bright_palette}


def palette_image(label: Array) -> Image.Image:
    """Class ids 0..255 [H, W] as a palette image in PASCAL VOC's colours."""
    image = Image.fromarray(label.astype(np.uint8)).convert("P")
    image.putpalette(voc_palette().ravel().tolist())
    return image


def as_hex(colour: Any) -> str:
    """(red, green, blue), 0..255 each, as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def palette_of(palette: str | Any) -> Array:
    """uint8 [colours, 3] from a name in PALETTES or from colours 0..255. Raises DrawingError."""
    if isinstance(palette, str):
        if palette not in PALETTES:
            raise DrawingError(f"unknown palette {palette!r}; expected one of: {', '.join(PALETTES)}")
        return PALETTES[palette](256)
    colours = np.asarray(palette)
    if colours.ndim != 2 or colours.shape[1] != 3 or not len(colours):
        raise DrawingError(f"a palette is [colours, 3] with values 0..255; found shape {colours.shape}")
    return colours.astype(np.uint8)


def colourise(label_map: Any, palette: str | Any = "voc") -> Array:
    """Label map [H, W] -> colours uint8 [H, W, 3]; ids beyond the palette start over at 1, void keeps its colour."""
    colours, labels = palette_of(palette), labels_of(label_map)
    count = min(len(colours), VOID)
    wrapped = np.where(labels < count, labels, 1 + (labels - 1) % max(count - 1, 1)).clip(0, count - 1)
    void = colours[VOID] if len(colours) > VOID else np.array([255, 255, 255], np.uint8)
    return np.where((labels == VOID)[..., None], void, colours[wrapped])


def overlay(image: Any, label_map: Any, palette: str | Any = "voc", alpha: float = 0.6) -> Image.Image:
    """The image with its label map on top, at the image's size; labels are resized by nearest neighbour.

    image      a PIL image, a file's name, or an array [H, W, 3], uint8 or floats 0..1
    label_map  [h, w] class ids; 255 is void
    alpha      0 shows only the image, 1 only the labels
    Raises DrawingError for other shapes or an alpha beyond 0..1.
    """
    if not 0 <= alpha <= 1:
        raise DrawingError(f"alpha is {alpha}; it goes from 0 (image) to 1 (labels)")
    image = as_image(image)
    colours = Image.fromarray(colourise(label_map, palette)).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, colours, alpha)


def as_image(image: Any) -> Image.Image:
    """An RGB PIL image from a PIL image, a file, or an array [H, W, 3], uint8 or floats 0..1. Raises DrawingError."""
    if isinstance(image, Image.Image) or is_file(image):
        return read_image(image).image
    pixels = array_of(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DrawingError(f"an image is [height, width, 3]; found shape {pixels.shape}")
    if pixels.dtype != np.uint8:
        pixels = (255 * pixels.astype(float).clip(0, 1)).round().astype(np.uint8)
    return Image.fromarray(pixels)


def array_of(values: Any) -> Array:
    return np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values)


def labels_of(label_map: Any) -> Array:
    labels = array_of(label_map)
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "iub":
        raise DrawingError(f"a label map is [height, width] of whole numbers; found {labels.dtype} {labels.shape}")
    if (labels := labels.astype(np.int64)).min() < 0:
        raise DrawingError(f"a label map holds class ids from 0 up; found {labels.min()}")
    return labels
