"""The two tasks of a run: which metric counts, whether images have prompts, and how the results are computed.

task = TASKS["segmentation"](settings, dataset_config, protocol)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from goca.benchmark.settings import RunSettings
from goca.datasets import VOID, Dataset, DatasetConfig
from goca.evaluation import ConfusionCounts, MeanIoU
from goca.evaluation.matched_iou import THRESHOLD, MatchedIoU
from goca.files.log import Record
from goca.protocol import ASK, Protocol
from goca.report.results import summarise

Origins = Mapping[str, Mapping[str, Any]]
MATCHING = "each image's regions are matched to the classes of its own label (Hungarian)"


def metric_for(dataset: Dataset, config: DatasetConfig, protocol: Protocol, extra: Sequence[float] = ()) -> MeanIoU:
    """The metric that a data set and a protocol ask for; `extra` thresholds are counted along with the swept ones."""
    return MeanIoU(
        num_classes=len(dataset.class_names),
        background=config.background,
        thresholds=[*config.thresholds, *(threshold for threshold in extra if threshold not in config.thresholds)],
        ignore_index=VOID if protocol.void == "ignore" else None,
        absent="skip" if protocol.absent_classes == "skip" else "zero",
    )


@dataclass(frozen=True)
class Task(ABC):
    """What a run counts.

    run       the run's keys
    dataset   the fields of its data set
    protocol  how void pixels and absent classes are counted
    """

    run: RunSettings
    dataset: DatasetConfig
    protocol: Protocol
    prompted = True  # whether images are segmented with prompts

    @property
    @abstractmethod
    def ranking_threshold(self) -> float:
        """The threshold at which images are ranked and drawn for the report."""

    @abstractmethod
    def metric(self, dataset: Dataset) -> ConfusionCounts:
        """A metric that has counted nothing."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What its counts depend on, for settings.json, besides that which both tasks have."""

    @abstractmethod
    def results(
        self, dataset: Dataset, metric: Any, records: Sequence[Record], values: Mapping[str, Any], origins: Origins
    ) -> dict[str, Any]:
        """The contents of results.json.

        metric   of this task, with the counts of all records
        values   every value of the configuration
        origins  as in `summarise`
        """


class SegmentationByPrompt(Task):
    """Classes from score maps; the background threshold is swept."""

    @property
    def ranking_threshold(self) -> float:
        return self.run.fixed_threshold

    def metric(self, dataset: Dataset) -> MeanIoU:
        return metric_for(dataset, self.dataset, self.protocol, extra=[self.run.fixed_threshold])

    def settings(self) -> dict[str, Any]:
        return {}

    def results(
        self, dataset: Dataset, metric: MeanIoU, records: Sequence[Record], values: Mapping[str, Any], origins: Origins
    ) -> dict[str, Any]:
        return summarise(
            dataset,
            self.dataset,
            self.protocol,
            metric,
            records,
            fixed=self.run.fixed_threshold,
            settings=values,
            origins=origins,
            asked=(self.run.ask or ASK[0], self.run.words),
        )


class UnsupervisedSegmentation(Task):
    """Regions without prompts or thresholds; they are matched to the classes of each image's label."""

    prompted = False

    @property
    def ranking_threshold(self) -> float:
        return THRESHOLD

    def metric(self, dataset: Dataset) -> MatchedIoU:
        swept = metric_for(dataset, self.dataset, self.protocol)
        return MatchedIoU(swept.num_classes, swept.ignore_index, swept.absent)

    def settings(self) -> dict[str, Any]:
        return {"task": "unsupervised", "merging": dataclasses.asdict(self.run.merging)}

    def results(
        self,
        dataset: Dataset,
        metric: MatchedIoU,
        records: Sequence[Record],
        values: Mapping[str, Any],
        origins: Origins,
    ) -> dict[str, Any]:
        """Those of the other task at one threshold, with the pixel accuracy and what the matching knows."""
        config = dataclasses.replace(self.dataset, thresholds=[THRESHOLD])
        results = summarise(
            dataset, config, self.protocol, metric, records, fixed=THRESHOLD, settings=values, origins=origins
        )
        accuracy = metric.pixel_accuracy()
        return {
            "task": "unsupervised",
            "pixel_accuracy": None if np.isnan(accuracy) else accuracy,
            **results,
            "warnings": results["warnings"] | {"no_class": []},  # regions have no classes to name
            "oracle": {"matching": MATCHING},
        }


TASKS: dict[str, type[Task]] = {"segmentation": SegmentationByPrompt, "unsupervised": UnsupervisedSegmentation}
