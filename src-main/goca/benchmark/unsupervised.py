"""Segmentation without a prompt: self-attention alone is merged into regions, which are scored by what they overlap.

Regions have no names. For each image they are matched to the classes of its label (Hungarian), one class per region and
one region per class; a region that is left over counts as an error of the classes that are there, and of no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goca.benchmark.benchmark import Benchmark
from goca.benchmark.counting import metric_for
from goca.benchmark.prediction import Predictor
from goca.benchmark.predictor import Noise, RegionPredictor
from goca.benchmark.run_store import RunStore
from goca.datasets import VOID, Dataset
from goca.evaluation import MeanIoU, MetricError
from goca.evaluation.mean_iou import as_array
from goca.evaluation.metrics import as_cells
from goca.evaluation.upsample import upsample
from goca.files.log import Record
from goca.refine import UNMATCHED, hungarian_match
from goca.report.results import summarise
from goca.variants.regions import RegionFinder

THRESHOLD = 0.0  # results keep the form of the other task, with one threshold that decides nothing
ORACLE = {"matching": "each image's regions are matched to the classes of its own label (Hungarian)"}


class MatchedIoU(MeanIoU):
    """Mean IoU and pixel accuracy of regions, matched image by image.

    num_classes   classes that may be matched: label values 0..num_classes-1
    Pixels of unmatched regions have a column of their own behind the classes: they belong to no prediction.
    """

    def __init__(
        self, num_classes: int, ignore_index: int | None = None, absent: Literal["zero", "skip"] = "zero"
    ) -> None:
        super().__init__(num_classes, "exact", (THRESHOLD,), ignore_index, absent)
        self._cells = np.zeros((2, num_classes, num_classes + 1), np.int64)

    def update(self, scores: Any, label: ArrayLike, class_ids: Sequence[int] = ()) -> NDArray[np.int64]:
        """Count one image: regions [P, g, h], upsampled bilinearly, argmax, matched; rows (label, class, 1, pixels)."""
        maps = np.ascontiguousarray(as_array(scores), np.float32)
        if maps.ndim != 3 or 0 in maps.shape or not np.isfinite(maps).all():
            raise MetricError(f"regions have the shape {list(maps.shape)}; expected finite maps [P, g, g]")
        label = self.checked_label(label)
        matched = hungarian_match(upsample(maps, *label.shape).argmax(0), label, self.num_classes)
        predicted = np.where(matched == UNMATCHED, self.num_classes, matched)
        kept = np.ones(label.shape, bool) if self.ignore_index is None else label != self.ignore_index
        pairs, pixels = np.unique(np.stack([label[kept], predicted[kept]]), axis=1, return_counts=True)
        cells = np.stack([*pairs, np.ones_like(pixels), pixels], axis=1).astype(np.int64)
        self.add(cells)
        return cells

    def add(self, cells: ArrayLike) -> None:
        cells = as_cells(cells)
        label, predicted, wins, pixels = cells.T
        if (cells < 0).any() or (cells[:, :3] >= [self.num_classes, self.num_classes + 1, 2]).any():
            raise MetricError(f"counts lie outside {self.num_classes} classes")
        np.add.at(self._cells, (wins, label, predicted), pixels)

    def predict(
        self, scores: Any, label: NDArray[np.integer], class_ids: Sequence[int] = (), threshold: float = THRESHOLD
    ) -> NDArray[np.integer]:
        """The matched classes [H, W] of a checked label; VOID where a region is unmatched."""
        regions = upsample(np.ascontiguousarray(as_array(scores), np.float32), *label.shape).argmax(0)
        matched = hungarian_match(regions, label, self.num_classes)
        return np.where(matched == UNMATCHED, VOID, matched)

    def empty_copy(self) -> MatchedIoU:
        return MatchedIoU(self.num_classes, self.ignore_index, self.absent)

    @property
    def union(self) -> NDArray[np.int64]:
        confusion = self.confusion  # [1, C, C + 1]
        predicted = confusion.sum(axis=1)[:, : self.num_classes]
        return predicted + confusion.sum(axis=2) - confusion.diagonal(axis1=1, axis2=2)

    def pixel_accuracy(self) -> float:
        """The share of counted pixels whose matched class is their own; NaN if nothing was counted."""
        total = int(self._cells.sum())
        return float(self.intersection.sum() / total) if total else float("nan")


@dataclass(frozen=True, kw_only=True)
class UnsupervisedBenchmark(Benchmark):
    """A run with `task=unsupervised`: no captions, no thresholds; resumed and shared among processes like the other."""

    def metric(self, dataset: Dataset) -> MatchedIoU:
        counted = metric_for(dataset, self.dataset, self.protocol)
        return MatchedIoU(counted.num_classes, counted.ignore_index, counted.absent)

    def prompts(self, dataset: Dataset) -> None:
        """There are none."""

    def loader(self, dataset: Dataset, source: Any = None) -> Callable[[RunStore], Predictor]:
        noise, merging = Noise(self.noise(), self.seed), self.merging
        return lambda store: RegionPredictor(self.load(RegionFinder, store), merging, noise)

    @property
    def drawn_at(self) -> float:
        return THRESHOLD

    def labels(self) -> None:  # type: ignore[override]
        """There are none to read."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "task": "unsupervised", "merging": dataclasses.asdict(self.merging)}

    def results(self, dataset: Dataset, metric: MeanIoU, records: Sequence[Record], store: RunStore) -> dict[str, Any]:
        """Those of the other task at one threshold, with the pixel accuracy and what the matching knows."""
        assert isinstance(metric, MatchedIoU)
        one = dataclasses.replace(self.dataset, thresholds=[THRESHOLD])
        results = summarise(
            dataset,
            one,
            self.protocol,
            metric,
            records,
            fixed=THRESHOLD,
            settings=self.values,
            origins=store.origins(),
        )
        accuracy = metric.pixel_accuracy()
        results["warnings"]["no_class"] = []
        return {
            "task": "unsupervised",
            "pixel_accuracy": None if np.isnan(accuracy) else accuracy,
            **results,
            "oracle": dict(ORACLE),
        }
