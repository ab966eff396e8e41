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

from goca.evaluation.counts import ConfusionCounts, as_array
from goca.evaluation.decision import BACKGROUND_RULES, count_cells, decide
from goca.evaluation.metrics import MetricError


class MeanIoU(ConfusionCounts):
    """Counts pixels by true class, predicted class and threshold; mIoU and its relatives are computed from the counts.

    num_classes   classes of the data set, background (id 0) included
    background    the score of class 0, from its map m and a threshold T: vanilla T, max max(m, T), exact m,
                  avg (T + m) / 2, offset T + m
    thresholds, ignore_index, absent   as in `ConfusionCounts`
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
            raise MetricError(f"unknown background rule {background!r}; expected one of: {', '.join(BACKGROUND_RULES)}")
        super().__init__(num_classes, thresholds, ignore_index, absent)
        self.background = background

    def update(self, scores: Any, label: ArrayLike, class_ids: Sequence[int]) -> NDArray[np.int64]:
        """Count one image; the counts [cells, 4] that were added are returned, and can be stored for `add`.

        scores     [k+1, g, h]  numpy or torch, computed in float32; the last map is the background's. None: the whole
                                image is background, whatever the threshold
        label      [H, W]       class ids or ignore_index; scores are upsampled bilinearly to its size
        class_ids  the k ids in map order, each in 1..num_classes-1
        """
        if scores is None:
            return self.update_background(label)
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
        """Count one image that is background everywhere at every threshold; returns the same as `update`."""
        label = self.checked_label(label)
        kept = label if self.ignore_index is None else label[label != self.ignore_index]
        labels, pixels = np.unique(kept, return_counts=True)
        cells = np.stack([labels, np.zeros_like(labels), np.zeros_like(labels), pixels], axis=1).astype(np.int64)
        self.add(cells)
        return cells

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

    def empty_copy(self) -> MeanIoU:
        return MeanIoU(self.num_classes, self.background, self.thresholds, self.ignore_index, self.absent)

    def _settings(self) -> tuple[Any, ...]:
        return *super()._settings(), self.background

    def _check_scores(self, scores: NDArray, class_ids: list[int]) -> None:
        if scores.ndim != 3 or len(scores) != len(class_ids) + 1 or 0 in scores.shape:
            raise MetricError(
                f"scores have the shape {list(scores.shape)}; {len(class_ids)} class ids need"
                f" [{len(class_ids) + 1}, g, g], the last map being the background's"
            )
        outside = [class_id for class_id in class_ids if not 1 <= class_id < self.num_classes]
        if outside or len(set(class_ids)) < len(class_ids):
            raise MetricError(f"class ids are {class_ids}; each lies in 1..{self.num_classes - 1} and occurs once")
