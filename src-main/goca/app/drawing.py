"""A result as the page shows it: overlay, legend, word maps. All from kept scores; no model runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from goca.drawing.legend import Entry, painted
from goca.segmentation import Segmentation

LEAST, MOST = 512, 1024  # longer side of the images shown; labels are decided at that size


@dataclass(frozen=True)
class Kept:
    """What is kept of a run, so that another threshold, a click and a download need no model.

    segmentation  at the page's size
    size          (height, width) of the image itself, in which files are written
    name          of the image's file, without its suffix
    record        what NAME.json says of the run
    """

    segmentation: Segmentation
    size: tuple[int, int]
    name: str = "image"
    record: Mapping[str, Any] = field(default_factory=dict)


def at_page_size(segmentation: Segmentation) -> Segmentation:
    """The same with its image, and so its label maps, at the page's size, and scores on the CPU: small to keep."""
    picture = segmentation.image.convert("RGB")
    longer = max(picture.size)
    scale = min(max(longer, LEAST), MOST) / longer
    w, h = (max(1, round(side * scale)) for side in picture.size)
    shown = picture.resize((w, h), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    return dataclasses.replace(segmentation, scores=segmentation.scores.float().cpu(), image_size=(h, w), image=shown)


def decided(segmentation: Segmentation, threshold: float) -> tuple[Image.Image, list[Entry]]:
    """The greyed image under its words' colours, background as it was; and the legend, background last."""
    label = segmentation.label_map(threshold=threshold)
    return painted(segmentation.image, label, segmentation.colours()), segmentation.legend(label)


def described(entries: list[Entry]) -> str:
    """The overlay in words, for those who do not see it."""
    shares = ", ".join(f"{entry.name} {entry.share:.0%}" for entry in entries)
    return f"The image under its words' colours: {shares}"


def word_maps(segmentation: Segmentation) -> list[tuple[Image.Image, str]]:
    """A heat map over the image for each word, and the word."""
    from goca.drawing.figures import heat_overlay  # matplotlib

    named = zip(segmentation.scores, segmentation.class_ids, segmentation.names)
    return [(heat_overlay(segmentation.image, np.asarray(heat)), name) for heat, id_, name in named if id_]
