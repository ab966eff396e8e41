"""Thumbnails of a run's worst and best images: image, ground truth and prediction side by side.

    gallery/<sha256 of the palette's name and the image's id, shortened>.webp

Each process of a run writes a few as it goes. A finished run removes those that its report does not show.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from goca.benchmark.run_store import write_bytes
from goca.drawing.class_colours import class_palette
from goca.drawing.palettes import Array, as_image, overlay
from goca.evaluation import ConfusionCounts
from goca.evaluation.metrics import image_iou
from goca.files.log import Record

KEPT = 8  # worst images, and as many best ones
SIDE = 192  # pixels of a panel, at most
QUALITIES = (80, 60, 40, 20)  # of WebP; the first whose strip fits into BYTES is used
BYTES = 20_000
ALPHA = 0.6
PALETTE = "names"  # colours follow class names; "bright": class ids, as in run folders of earlier versions
FADED = 0.55  # how much white is mixed into the image under the classes
GAP = 4  # transparent pixels between panels

OWN = re.compile(r"[0-9a-f]{24}\.webp")  # names of thumbnails; other files in the folder are never removed

Ranked = tuple[float, str]  # image IoU, image id: an order that does not depend on which process counted


class Gallery:
    """Writes one process's thumbnails into the folder `gallery` of a run.

    metric     the run's metric, whose settings decide the prediction
    threshold  one of its thresholds, by which images are ranked and drawn
    names      class id -> name, from which the colours follow
    known      records of earlier runs in the same folder
    """

    def __init__(
        self,
        run_dir: Path,
        metric: ConfusionCounts,
        threshold: float,
        names: Sequence[str],
        known: Sequence[Record] = (),
        kept: int = KEPT,
    ) -> None:
        self.palette = class_palette(names)
        self.folder, self.metric, self.threshold, self.kept = run_dir / "gallery", metric, threshold, kept
        counted = [record for record in known if "cells" in record]
        self._ranks = sorted(
            rank for rank in rank_images(counted, metric, threshold) if thumbnail_path(run_dir, rank[1]).exists()
        )

    def offer(
        self, image_id: str, image: Any, label: NDArray[np.integer], scores: Any, class_ids: Sequence[int], cells: Any
    ) -> None:
        """Write an image's thumbnail if it is among the worst or the best so far. Raises RunError if that fails.

        image, label, scores, class_ids  as in ConfusionCounts.predict
        cells                            what ConfusionCounts.update returned
        """
        ranks = rank_images([{"image": image_id, "cells": cells}], self.metric, self.threshold)
        ranked = sorted({*self._ranks, *ranks})
        shown = {*ranked[: self.kept], *ranked[-self.kept :]}
        if not shown.intersection(ranks):
            return
        predicted = self.metric.predict(scores, label, class_ids, self.threshold)
        strip = thumbnail(as_image(image), label, predicted, self.palette)
        write_bytes(thumbnail_path(self.folder.parent, image_id), strip)
        for _, left_out in set(ranked) - shown:
            thumbnail_path(self.folder.parent, left_out).unlink(missing_ok=True)
        self._ranks = sorted(shown)


def rank_images(records: Sequence[Record], metric: ConfusionCounts, threshold: float) -> list[Ranked]:
    """Sort images as (image IoU, id), worst first; images without a labelled pixel are left out."""
    counts = metric.image_counts([record["cells"] for record in records], threshold)
    pairs = zip(image_iou(counts).tolist(), (record["image"] for record in records))
    return sorted((iou, image_id) for iou, image_id in pairs if iou == iou)


def thumbnail_path(run_dir: Path, image_id: str, palette: str = PALETTE) -> Path:
    """Return the path of an image's thumbnail; the id may hold any characters, since it is hashed."""
    text = image_id if palette == "bright" else f"{palette}/{image_id}"
    return run_dir / "gallery" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.webp"


def thumbnail(image: Image.Image, label: NDArray, predicted: NDArray, palette: Array) -> bytes:
    """Make a WebP strip of image, ground truth and prediction, each at most SIDE wide and high, about BYTES in all.

    label, predicted  [H, W] class ids; 255 is void
    palette           uint8 [256, 3]
    Small images are enlarged by a whole factor. Classes are drawn over the image in faded grey; background stays grey.
    """
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if (factor := SIDE // max(small.size)) > 1:
        small = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
    faded = Image.blend(small.convert("L").convert("RGB"), Image.new("RGB", small.size, "white"), FADED)
    panels = [small, *(_coloured(faded, labels, palette) for labels in (label, predicted))]
    strip = Image.new("RGBA", (3 * small.width + 2 * GAP, small.height))
    for number, panel in enumerate(panels):
        strip.paste(panel, (number * (small.width + GAP), 0))
    for quality in QUALITIES:
        file = io.BytesIO()
        strip.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= BYTES:
            break
    return file.getvalue()


def _coloured(image: Image.Image, labels: NDArray[np.integer], palette: Array) -> Image.Image:
    classes = Image.fromarray(labels != 0).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(overlay(image, labels, palette, ALPHA), image, classes)


def prune(run_dir: Path, image_ids: Sequence[str]) -> None:
    """Remove the thumbnails of all images but these."""
    wanted = {thumbnail_path(run_dir, image_id).name for image_id in image_ids}
    for path in (run_dir / "gallery").glob("*.webp"):
        if path.name not in wanted and OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)
