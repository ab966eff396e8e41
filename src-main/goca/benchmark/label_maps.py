"""Predicted label maps of a run as palette PNGs, at chosen background thresholds.

label_maps/<threshold>/<image id>.png
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goca.benchmark.run_store import write_bytes
from goca.drawing.palettes import palette_image
from goca.evaluation import ConfusionCounts

ODD = re.compile(r"[^\w.-]")  # characters of an image id that no file name here has


class LabelMaps:
    """The folder `label_maps` of a run, as its images are segmented.

    metric      the run's metric, whose settings decide what is predicted
    thresholds  those at which each image is drawn, all of them the metric's
    """

    def __init__(self, run_dir: Path, metric: ConfusionCounts, thresholds: Sequence[float]) -> None:
        self.folder, self.metric, self.thresholds = run_dir / "label_maps", metric, tuple(thresholds)

    def paths(self, image_id: str) -> dict[float, Path]:
        """The file of each threshold, within the run's folder.

        An id with characters that no file name here has (folders, ...) gets "_" for them, and a checksum that keeps
        its file apart from others'.
        """
        name = ODD.sub("_", image_id).lstrip(".")
        if name != image_id or not name:
            name += f"-{zlib.crc32(image_id.encode('utf-8', 'surrogatepass')):08x}"
        return {threshold: self.folder / f"{threshold:g}" / f"{name}.png" for threshold in self.thresholds}

    def complete(self, image_id: str) -> bool:
        """Whether every file of an image is there."""
        return all(path.is_file() for path in self.paths(image_id).values())

    def offer(
        self, image_id: str, image: Any, label: NDArray[np.integer], scores: Any, class_ids: Sequence[int], cells: Any
    ) -> None:
        """Draw an image; arguments as in ConfusionCounts.predict. Raises RunError if a file cannot be written."""
        for threshold, path in self.paths(image_id).items():
            write_bytes(path, palette_png(self.metric.predict(scores, label, class_ids, threshold)))


def palette_png(labels: NDArray[np.integer]) -> bytes:
    """Class ids 0..255 [H, W] as a PNG in PASCAL VOC's colours."""
    file = io.BytesIO()
    palette_image(labels).save(file, "PNG")
    return file.getvalue()
