"""A result as the page shows it: overlay, legend, word maps, drawn from stored scores without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from goca.drawing.legend import Entry, painted
from goca.segmentation import Segmentation

LEAST, MOST = 512, 1024  # longer side of displayed images; labels are computed at that size


@dataclass(frozen=True)
class Kept:
    """The stored result of a run, from which thresholds, clicks and downloads are computed without a model.

    segmentation  at the page's size
    size          (height, width) of the original image, and of the files
    name          the image's file name, without its suffix
    record        the content of NAME.json
    """

    segmentation: Segmentation
    size: tuple[int, int]
    name: str = "image"
    record: Mapping[str, Any] = field(default_factory=dict)


def at_page_size(segmentation: Segmentation) -> Segmentation:
    """The segmentation with its image and label maps at the page's size, and its scores on the CPU."""
    image = segmentation.image.convert("RGB")
    longer = max(image.size)
    scale = min(max(longer, LEAST), MOST) / longer
    w, h = (max(1, round(side * scale)) for side in image.size)
    shown = image.resize((w, h), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    return dataclasses.replace(segmentation, scores=segmentation.scores.float().cpu(), image_size=(h, w), image=shown)


def decided(segmentation: Segmentation, threshold: float) -> tuple[Image.Image, list[Entry]]:
    """The grey image with its classes in colour and the background unchanged; and the legend, background last."""
    label = segmentation.label_map(threshold=threshold)
    return painted(segmentation.image, label, segmentation.colours()), segmentation.legend(label)


def described(entries: list[Entry]) -> str:
    """The alternative text of the overlay."""
    shares = ", ".join(f"{entry.name} {entry.share:.0%}" for entry in entries)
    return f"The image under its words' colours: {shares}"


def word_maps(segmentation: Segmentation) -> list[tuple[Image.Image, str]]:
    """A heat map over the image for each word, and the word."""
    from goca.drawing.figures import heat_overlay  # matplotlib

    named = zip(segmentation.scores, segmentation.class_ids, segmentation.names)
    return [(heat_overlay(segmentation.image, np.asarray(heat)), name) for heat, id_, name in named if id_]
