"""Mean intersection over union of a data set, for every background threshold in one pass.

metric = MeanIoU(21, background="offset", thresholds=[-0.1, 0, 0.1], ignore_index=255, absent="skip")
metric.update(scores, label, class_ids=[8, 15])      # once per image
metric.compute()                                     # {-0.1: 0.51, 0: 0.55, 0.1: 0.53}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goca.evaluation.decision import BACKGROUND_RULES, count_cells, decide
from goca.evaluation.metrics import ImageCounts, MetricError, as_cells, class_iou, image_counts, mean_iou

ABSENT_RULES = ("zero", "skip")


class LabelError(MetricError):
    """A label map that is none, or that holds values which are neither classes nor ignored."""


class MeanIoU:
    """Counts pixels by true class, predicted class and threshold; mIoU and its relatives are read off the counts.

    num_classes   classes of the data set, background (id 0) included
    background    how class 0 scores, from its map m and a threshold T: vanilla T, max max(m, T), exact m,
                  avg (T + m) / 2, offset T + m
    thresholds    different numbers, in any order; results keep the order and the numbers as given
    ignore_index  label value that is not counted
    absent        a class with neither prediction nor label in the whole data set: "zero" counts as IoU 0, "skip"
                  leaves it out of the mean
    Raises MetricError for anything else.
    """

    def __init__(
        self,
        num_classes: int,
        background: str = "offset",
        thresholds: Sequence[float] = (0.0,),
        ignore_index: int | None = None,
        absent: Literal["zero", "skip"] = "zero",
    ) -> None:
        if background not in BACKGROUND_RULES:
            raise MetricError(f"background rule {background!r} is not known; there are: {', '.join(BACKGROUND_RULES)}")
        if absent not in ABSENT_RULES:
            raise MetricError(f"absent={absent!r} is not known; there are: {', '.join(ABSENT_RULES)}")
        if num_classes < 2:
            raise MetricError(f"num_classes is {num_classes}; background and at least one class make 2")
        if not len(thresholds) or len(set(thresholds)) < len(thresholds) or not np.isfinite(list(thresholds)).all():
            raise MetricError(f"thresholds are {list(thresholds)}; give one or more different finite numbers")
        self.num_classes, self.background = int(num_classes), background
        self.ignore_index = ignore_index
        self.absent: Literal["zero", "skip"] = absent
        self.thresholds = tuple(thresholds)
        self._ascending = sorted(self.thresholds)
        # pixels by [wins, true class, best class]; see goca.evaluation.decision
        self._cells = np.zeros((len(thresholds) + 1, num_classes, num_classes), np.int64)

    def update(self, scores: Any, label: ArrayLike, class_ids: Sequence[int]) -> NDArray[np.int64]:
        """Count one image; the counts [cells, 4] that were added are returned, and can be stored for `add`.

        scores     [k+1, g, h]  numpy or torch, computed in float32; the last map is the background's
        label      [H, W]       class ids or ignore_index; scores are upsampled bilinearly to its size
        class_ids  the k ids in map order, each in 1..num_classes-1
        """
        scores = np.ascontiguousarray(as_array(scores), np.float32)
        class_ids = [int(class_id) for class_id in class_ids]
        self._check_scores(scores, class_ids)
        cells = count_cells(
            scores,
            self.checked_label(label),
            class_ids,
            num_classes=self.num_classes,
            background=self.background,
            thresholds=self._ascending,
            ignore_index=self.ignore_index,
        )
        self.add(cells)
        return cells

    def update_background(self, label: ArrayLike) -> NDArray[np.int64]:
        """Count one image that was given to the background everywhere, whatever the threshold."""
        label = self.checked_label(label)
        kept = label if self.ignore_index is None else label[label != self.ignore_index]
        labels, pixels = np.unique(kept, return_counts=True)
        cells = np.stack([labels, np.zeros_like(labels), np.zeros_like(labels), pixels], axis=1).astype(np.int64)
        self.add(cells)
        return cells

    def add(self, cells: ArrayLike) -> None:
        """Count what an earlier `update` with the same settings returned: rows (label, class, wins, pixels)."""
        cells = as_cells(cells)
        label, best, wins, pixels = cells.T
        limits = np.array([self.num_classes, self.num_classes, len(self.thresholds) + 1])
        if (cells < 0).any() or (cells[:, :3] >= limits).any():
            raise MetricError(f"counts lie outside {self.num_classes} classes and {len(self.thresholds)} thresholds")
        np.add.at(self._cells, (wins, label, best), pixels)

    def merge(self, other: MeanIoU) -> MeanIoU:
        """Add another metric's counts to this one; both must have the same settings."""
        if (mine := self._settings()) != (theirs := other._settings()):
            raise MetricError(f"metrics of different settings cannot be merged: {mine} and {theirs}")
        self._cells += other._cells
        return self

    def empty_copy(self) -> MeanIoU:
        """Another metric with the same settings, which has counted nothing."""
        return MeanIoU(self.num_classes, self.background, self.thresholds, self.ignore_index, self.absent)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Pixels by [threshold, true class, predicted class], thresholds in the order given."""
        confusion = self._cells[::-1].cumsum(axis=0)[::-1][1:].copy()  # the best class's, where it beats background
        confusion[:, :, 0] += self._cells.sum(axis=(0, 2)) - confusion.sum(axis=2)
        return confusion[[self._ascending.index(threshold) for threshold in self.thresholds]]

    @property
    def intersection(self) -> NDArray[np.int64]:
        """Pixels of each class that were predicted as that class: [thresholds, classes]."""
        return np.ascontiguousarray(self.confusion.diagonal(axis1=1, axis2=2))

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels that are of a class or were predicted as that class: [thresholds, classes]."""
        confusion = self.confusion
        return confusion.sum(axis=1) + confusion.sum(axis=2) - confusion.diagonal(axis1=1, axis2=2)

    def per_class(self) -> NDArray[np.float64]:
        """IoU [thresholds, classes]; a class with neither prediction nor label is 0, or NaN under absent="skip"."""
        return class_iou(self.intersection, self.union, self.absent)

    def compute(self) -> dict[float, float]:
        """mIoU at each threshold; NaN if absent="skip" and nothing was counted."""
        return dict(zip(self.thresholds, mean_iou(self.per_class()).tolist()))

    def image_counts(self, images: Sequence[ArrayLike], threshold: float) -> ImageCounts:
        """Counts of each image at one of the thresholds, from what `update` returned for it."""
        return image_counts(images, self.num_classes, self._ascending.index(threshold))

    def predict(
        self, scores: Any, label: NDArray[np.integer], class_ids: Sequence[int], threshold: float
    ) -> NDArray[np.integer]:
        """Class ids [H, W] that `update` counts for a checked label at any one threshold; scores None: background."""
        if scores is None:
            return np.zeros(label.shape, np.int64)
        scores = np.ascontiguousarray(as_array(scores), np.float32)
        self._check_scores(scores, [int(class_id) for class_id in class_ids])
        best, wins, ids = decide(scores, label.shape, class_ids, self.num_classes, self.background, [threshold])
        return np.where(wins > 0, ids[best], 0)

    def _settings(self) -> tuple:
        return self.num_classes, self.background, self.thresholds, self.ignore_index, self.absent

    def _check_scores(self, scores: NDArray, class_ids: list[int]) -> None:
        if scores.ndim != 3 or len(scores) != len(class_ids) + 1 or 0 in scores.shape:
            raise MetricError(
                f"scores have the shape {list(scores.shape)}; {len(class_ids)} class ids need"
                f" [{len(class_ids) + 1}, g, g], the last map being the background's"
            )
        outside = [class_id for class_id in class_ids if not 1 <= class_id < self.num_classes]
        if outside or len(set(class_ids)) < len(class_ids):
            raise MetricError(f"class ids are {class_ids}; each lies in 1..{self.num_classes - 1} and occurs once")

    def checked_label(self, label: ArrayLike) -> NDArray[np.integer]:
        """The label map as an array. Raises LabelError for what `update` would not count."""
        label = as_array(label)
        if label.ndim != 2 or not label.size or label.dtype.kind not in "iub":
            raise LabelError(f"label is {label.dtype} of the shape {list(label.shape)}; expected whole numbers [H, W]")
        values = np.flatnonzero(np.bincount(label.ravel())) if label.dtype == np.uint8 else np.unique(label)
        unknown = [int(v) for v in values if not 0 <= v < self.num_classes and v != self.ignore_index]
        if unknown:
            raise LabelError(
                f"label holds {unknown[:5]}, which are neither classes 0..{self.num_classes - 1} nor the"
                f" ignore_index ({self.ignore_index}); map them or set ignore_index"
            )
        return label


def as_array(values: Any) -> NDArray:
    """A numpy array of what may be a torch tensor, on any device and in any precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy()
    return np.asarray(values)
