"""Draw a label map over its grey image, with a legend: colour, class name and area. Needs only numpy and PIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from goca.drawing.class_colours import as_palette
from goca.drawing.palettes import as_image, labels_of, overlay

STRENGTH = 0.65  # opacity of the colours
SMALLEST = 256  # the longer side of what is drawn is at least this many pixels, so that a legend can be read
TEXT = (24, 24, 24)
MARGIN = 0.5  # around a line of the legend, in line heights


@dataclass(frozen=True)
class Entry:
    """A line of a legend. colour: (red, green, blue), None for the background; share: share of the pixels, 0..1"""

    name: str
    colour: tuple[int, int, int] | None
    share: float


def painted(
    image: Any,
    label_map: Any,
    colours: Mapping[int, tuple[int, int, int]],
    strength: float = STRENGTH,
    background: int = 0,
) -> Image.Image:
    """The grey image with its classes in colour; background pixels keep the image's own colours.

    image      in any form that `goca.drawing.palettes.as_image` accepts; the result has its size
    label_map  class ids, resized by nearest neighbour   [h, w]
    colours    class id -> (red, green, blue)
    strength   0 shows only the image, 1 only the colours
    raises     DrawingError
    """
    own, labels = as_image(image), labels_of(label_map)
    coloured = overlay(own.convert("L").convert("RGB"), labels, as_palette(colours), strength)
    left = Image.fromarray(labels == background).convert("L").resize(own.size, Image.Resampling.NEAREST)
    return Image.composite(own, coloured, left)


def with_legend(image: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """The image with a legend below: as many columns as fit, each line a swatch, the name and its area in per cent.

    Small images are first enlarged to SMALLEST (by nearest neighbour, so pixels stay visible).
    """
    if not entries:
        return image
    image = _enlarged(image)
    size, font = _lettering(image)
    texts = [f"{entry.name}  {entry.share:.0%}" for entry in entries]
    line, swatch = round(1.6 * size), size
    widest = max(round(font.getlength(text)) for text in texts) + swatch + 2 * size
    columns = max(1, min(len(texts), image.width // widest))
    rows = -(-len(texts) // columns)
    margin = round(MARGIN * line)
    sheet = Image.new("RGB", (max(image.width, widest), image.height + rows * line + 2 * margin), "white")
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (entry, text) in enumerate(zip(entries, texts)):
        x = size // 2 + (number % columns) * (sheet.width // columns)
        y = image.height + margin + (number // columns) * line
        box = (x, y, x + swatch, y + swatch)
        draw.rectangle(box, fill=entry.colour, outline=(120, 120, 120))  # without a colour: an empty box
        draw.text((x + 1.5 * swatch, y + swatch / 2), text, fill=TEXT, font=font, anchor="lm")
    return sheet


def with_scale(image: Image.Image, name: str, colours: Image.Image, ends: tuple[float, float]) -> Image.Image:
    """A heat map with its legend below: the name, and the colours from the lowest value to the highest.

    colours  the map's colours from low to high, stretched to the available width
    ends     the lowest and the highest value
    Small images are enlarged as in `with_legend`.
    """
    image = _enlarged(image)
    size, font = _lettering(image)
    low, high = (f"{value:.2f}" for value in ends)
    left, right = round(font.getlength(f"{name} {low}")) + 2 * size, round(font.getlength(high)) + size
    room = max(4 * size, image.width - left - right)
    height = round((1.6 + 2 * MARGIN) * 1.6 * size)
    sheet = Image.new("RGB", (left + room + right, image.height + height), "white")
    sheet.paste(image, (0, 0))
    draw, middle = ImageDraw.Draw(sheet), image.height + height / 2
    draw.text((size / 2, middle), name, fill=TEXT, font=font, anchor="lm")
    draw.text((left - size / 2, middle), low, fill=TEXT, font=font, anchor="rm")
    sheet.paste(colours.resize((room, size)), (left, round(middle - size / 2)))
    draw.text((left + room + size / 2, middle), high, fill=TEXT, font=font, anchor="lm")
    return sheet


def _enlarged(image: Image.Image) -> Image.Image:
    factor = -(-SMALLEST // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _lettering(image: Image.Image) -> tuple[int, Any]:
    size = max(11, round(image.width / 36))
    return size, ImageFont.load_default(size)


def mask_on(image: Any, mask: Any) -> Image.Image:
    """The image where a mask is true, transparent elsewhere   RGBA, the image's size

    mask  bool, resized by nearest neighbour   [h, w]
    """
    image = as_image(image)
    alpha = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image
