"""A result as the page shows it: overlay, legend, word maps. All from kept scores; no model runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from goca.drawing.palettes import as_hex, bright_palette, overlay
from goca.segmentation import BACKGROUND, Segmentation

LEAST, MOST = 512, 1024  # longer side of the pictures shown; labels are decided at that size
STRENGTH = 0.72


@dataclass(frozen=True)
class Entry:
    """A line of the legend: the word, its colour as #rrggbb ("": the background, left as it is), its share 0..1."""

    word: str
    colour: str
    share: float


def at_page_size(segmentation: Segmentation) -> Segmentation:
    """The same with its picture, and so its label maps, at the page's size, and scores on the CPU: small to keep."""
    picture = segmentation.image.convert("RGB")
    longer = max(picture.size)
    scale = min(max(longer, LEAST), MOST) / longer
    w, h = (max(1, round(side * scale)) for side in picture.size)
    shown = picture.resize((w, h), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    return dataclasses.replace(segmentation, scores=segmentation.scores.float().cpu(), image_size=(h, w), image=shown)


def decided(segmentation: Segmentation, threshold: float) -> tuple[Image.Image, list[Entry]]:
    """The greyed picture under its words' colours, background as it was; and the legend, background last."""
    label = segmentation.label_map(threshold=threshold)
    picture, labels = segmentation.image, label.numpy()
    painted = overlay(picture.convert("L"), labels, "bright", STRENGTH)
    left = Image.fromarray(labels == BACKGROUND).convert("L")
    colours = bright_palette()
    entries = [
        Entry(
            row["name"],
            "" if row["id"] == BACKGROUND else as_hex(colours[row["id"]]),
            row["area"],
        )
        for row in segmentation.summary(label)
    ]
    return Image.composite(picture, painted, left), entries


def word_maps(segmentation: Segmentation) -> list[tuple[Image.Image, str]]:
    """A heat map over the picture for each word, and the word."""
    from goca.drawing.figures import heat_overlay  # matplotlib

    named = zip(segmentation.scores, segmentation.class_ids, segmentation.names)
    return [(heat_overlay(segmentation.image, np.asarray(heat)), name) for heat, id_, name in named if id_]
