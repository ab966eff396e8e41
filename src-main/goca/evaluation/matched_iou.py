"""IoU of regions without names: in each image they are matched to the classes of its label (Hungarian matching).

One class per region and one region per class, so that as many pixels as possible agree. An unmatched region counts as
an error of the classes that it covers, and of no others. Loads torch (`goca.refine.hungarian_match`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goca.evaluation.counts import ConfusionCounts, as_array
from goca.evaluation.metrics import MetricError
from goca.evaluation.upsample import upsample
from goca.refine import UNMATCHED, hungarian_match

THRESHOLD = 0.0  # results have the form of those with thresholds: this single one decides nothing
VOID = 255  # in predicted label maps: pixels of regions without a class


class MatchedIoU(ConfusionCounts):
    """Mean IoU and pixel accuracy of regions, matched image by image.

    num_classes           classes that may be matched: label values 0..num_classes-1
    ignore_index, absent  as in `ConfusionCounts`

    Pixels of unmatched regions are counted in a separate column after the classes: they have no predicted class.

    >>> metric = MatchedIoU(3)
    >>> regions = np.array([[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]])  # three regions of a pixel each   [P, H, W]
    >>> metric.update(regions, np.array([[2, 1, 1]]))  # the third is unmatched: class 1 has the second
    array([[1, 1, 1, 1],
           [1, 3, 1, 1],
           [2, 2, 1, 1]])
    >>> metric.intersection.tolist(), metric.union.tolist()
    ([[0, 1, 1]], [[0, 2, 1]])
    >>> round(metric.pixel_accuracy(), 3)
    0.667
    """

    def __init__(
        self, num_classes: int, ignore_index: int | None = None, absent: Literal["zero", "skip"] = "zero"
    ) -> None:
        super().__init__(num_classes, (THRESHOLD,), ignore_index, absent, columns=num_classes + 1)

    def update(self, scores: Any, label: ArrayLike, class_ids: Sequence[int] = ()) -> NDArray[np.int64]:
        """Count one image, and return rows (label, class, 1, pixels) for `add`.

        scores  [P, g, h]  one map per region; the argmax of the bilinearly upsampled maps gives the regions
        label   [H, W]     class ids or ignore_index
        """
        label = self.checked_label(label)
        matched = self._matched(scores, label)
        predicted = np.where(matched == UNMATCHED, self.num_classes, matched)
        kept = np.ones(label.shape, bool) if self.ignore_index is None else label != self.ignore_index
        pairs, pixels = np.unique(np.stack([label[kept], predicted[kept]]), axis=1, return_counts=True)
        cells = np.stack([*pairs, np.ones_like(pixels), pixels], axis=1).astype(np.int64)
        self.add(cells)
        return cells

    def predict(
        self, scores: Any, label: NDArray[np.integer], class_ids: Sequence[int] = (), threshold: float = THRESHOLD
    ) -> NDArray[np.integer]:
        """The matched classes [H, W] of a checked label; VOID where a region is unmatched."""
        matched = self._matched(scores, label)
        return np.where(matched == UNMATCHED, VOID, matched)

    def empty_copy(self) -> MatchedIoU:
        return MatchedIoU(self.num_classes, self.ignore_index, self.absent)

    def pixel_accuracy(self) -> float:
        """The share of counted pixels with the correct matched class; NaN if nothing was counted."""
        total = int(self._cells.sum())
        return float(self.intersection.sum() / total) if total else float("nan")

    def _matched(self, scores: Any, label: NDArray[np.integer]) -> NDArray[np.integer]:
        """Class ids [H, W], UNMATCHED for regions without a class. Raises MetricError for invalid shapes or values."""
        maps = None if scores is None else np.ascontiguousarray(as_array(scores), np.float32)
        if maps is None or maps.ndim != 3 or 0 in maps.shape or not np.isfinite(maps).all():
            found = "missing" if maps is None else f"of the shape {list(maps.shape)}"
            raise MetricError(f"regions are {found}; expected finite maps [P, g, g]")
        return hungarian_match(upsample(maps, *label.shape).argmax(0), label, self.num_classes)
