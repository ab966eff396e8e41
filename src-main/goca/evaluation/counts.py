"""Pixel counts by true class, predicted class and threshold, and the metrics computed from them.

`MeanIoU` (classes from score maps) and `MatchedIoU` (regions matched to classes) are subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goca.evaluation.metrics import ImageCounts, MetricError, as_cells, class_iou, image_counts, mean_iou

ABSENT_RULES = ("zero", "skip")


class LabelError(MetricError):
    """A label map with a wrong shape or dtype, or with values that are neither classes nor ignored."""


class ConfusionCounts(ABC):
    """Pixels by true class, predicted class and threshold; IoU and its relatives are computed from these counts.

    num_classes   classes of the data set, background (id 0) included
    thresholds    distinct numbers in any order, which results keep
    ignore_index  label value that is not counted
    absent        a class with neither prediction nor label in the whole data set: "zero" counts as IoU 0, "skip"
                  leaves it out of the mean
    columns       ids of predictions: 0..columns-1; those from num_classes on mean no class
    Raises MetricError for anything else.
    """

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float],
        ignore_index: int | None,
        absent: Literal["zero", "skip"],
        columns: int | None = None,
    ) -> None:
        if absent not in ABSENT_RULES:
            raise MetricError(f"unknown rule absent={absent!r}; expected one of: {', '.join(ABSENT_RULES)}")
        if num_classes < 2:
            raise MetricError(f"num_classes is {num_classes}; background and at least one class make 2")
        if not len(thresholds) or len(set(thresholds)) < len(thresholds) or not np.isfinite(list(thresholds)).all():
            raise MetricError(f"thresholds are {list(thresholds)}; give one or more different finite numbers")
        self.num_classes, self.ignore_index = int(num_classes), ignore_index
        self.absent: Literal["zero", "skip"] = absent
        self.thresholds = tuple(thresholds)
        self._ascending = sorted(self.thresholds)
        # pixels by [wins, true class, best class]; see goca.evaluation.decision
        self._cells = np.zeros((len(thresholds) + 1, num_classes, columns or num_classes), np.int64)

    @abstractmethod
    def update(self, scores: Any, label: ArrayLike, class_ids: Sequence[int]) -> NDArray[np.int64]:
        """Count one image; the counts [cells, 4] that were added are returned, and can be stored for `add`."""

    @abstractmethod
    def predict(
        self, scores: Any, label: NDArray[np.integer], class_ids: Sequence[int], threshold: float
    ) -> NDArray[np.integer]:
        """The class ids [H, W] that `update` counts for a checked label at one threshold."""

    @abstractmethod
    def empty_copy(self) -> Self:
        """A new metric with the same settings and no counts."""

    def add(self, cells: ArrayLike) -> None:
        """Add counts returned by an earlier `update` with the same settings: rows (label, class, wins, pixels)."""
        cells = as_cells(cells)
        label, best, wins, pixels = cells.T
        levels, classes, columns = self._cells.shape
        if (cells < 0).any() or (cells[:, :3] >= [classes, columns, levels]).any():
            raise MetricError(f"counts lie outside {self.num_classes} classes and {len(self.thresholds)} thresholds")
        np.add.at(self._cells, (wins, label, best), pixels)

    def merge(self, other: Self) -> Self:
        """Add another metric's counts to this one; both must have the same settings."""
        if (mine := self._settings()) != (theirs := other._settings()):
            raise MetricError(f"metrics of different settings cannot be merged: {mine} and {theirs}")
        self._cells += other._cells
        return self

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Pixels by [threshold, true class, predicted class or column], thresholds in the order given."""
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
        predicted = confusion.sum(axis=1)[:, : self.num_classes]
        return predicted + confusion.sum(axis=2) - confusion.diagonal(axis1=1, axis2=2)

    def per_class(self) -> NDArray[np.float64]:
        """IoU [thresholds, classes]; a class with neither prediction nor label is 0, or NaN under absent="skip"."""
        return class_iou(self.intersection, self.union, self.absent)

    def compute(self) -> dict[float, float]:
        """mIoU at each threshold; NaN if absent="skip" and nothing was counted."""
        return dict(zip(self.thresholds, mean_iou(self.per_class()).tolist()))

    def image_counts(self, images: Sequence[ArrayLike], threshold: float) -> ImageCounts:
        """Counts of each image at one of the thresholds, from the values returned by `update`."""
        return image_counts(images, self.num_classes, self._ascending.index(threshold))

    def checked_label(self, label: ArrayLike) -> NDArray[np.integer]:
        """The label map as an array. Raises LabelError if `update` could not count it."""
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

    def _settings(self) -> tuple[Any, ...]:
        """The settings that must agree for two metrics to be merged."""
        return type(self).__name__, self.num_classes, self.thresholds, self.ignore_index, self.absent


def as_array(values: Any) -> NDArray:
    """A numpy array from an array or a torch tensor on any device and in any precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return values.numpy()
    return np.asarray(values)
