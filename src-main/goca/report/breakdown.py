"""A run's counts broken down, ready for JSON: metrics with confidence intervals, confusions, worst and best images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from goca.evaluation import ConfusionCounts
from goca.evaluation.metrics import ImageCounts, as_cells, bootstrap, metrics, resampling
from goca.files.log import Record
from goca.report.gallery import KEPT, rank_images

CONFUSED_CLASSES, CONFUSED_PAIRS = 10, 20  # at most


def number(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN."""
    return None if math.isnan(value) else float(value)


def metric_values(
    metric: ConfusionCounts, swept: Sequence[float], best: ImageCounts, fixed: ImageCounts, at: tuple[float, float]
) -> dict[str, Any]:
    """Compute every metric of `goca.evaluation.metrics` at the best and the fixed threshold, with bootstrap intervals.

    swept        thresholds whose metrics are given without an interval
    best, fixed  counts of each image at the two thresholds `at`
    The best threshold is the one found on all images; it is not searched again for each bootstrap sample.
    """
    labelled = best.labelled.sum(axis=0)
    chosen = [metric.thresholds.index(threshold) for threshold in swept]
    values = metrics(metric.intersection[chosen], metric.union[chosen], labelled, metric.absent)
    return {
        **{
            name: {"threshold": threshold, **_with_intervals(counts, metric.absent)}
            for name, threshold, counts in zip(("best", "fixed"), at, (best, fixed))
        },
        "swept": [
            {"threshold": threshold, **{name: number(each[row]) for name, each in values.items()}}
            for row, threshold in enumerate(swept)
        ],
        "bootstrap": resampling(len(best.labelled)),
    }


def confusions(metric: ConfusionCounts, names: Sequence[str], threshold: float) -> dict[str, Any]:
    """Find the most frequent class confusions at one threshold.

    pairs    the most frequent confusions: true class, predicted class, pixels, their share of the true class's pixels
    classes  ids of the classes with the most wrong pixels, ascending
    pixels   [true, predicted] pixel counts among these classes
    """
    confusion = metric.confusion[metric.thresholds.index(threshold)]
    wrong, labelled = confusion[:, : len(names)].copy(), confusion.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order]
    involved = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:CONFUSED_CLASSES]
    classes = sorted(int(each) for each in involved if wrong[each].any() or wrong[:, each].any())
    return {
        "threshold": threshold,
        "pairs": [
            {
                "true": names[true],
                "predicted": names[predicted],
                "pixels": int(wrong[true, predicted]),
                "share": float(wrong[true, predicted] / labelled[true]),
            }
            for true, predicted in pairs
            if wrong[true, predicted]
        ],
        "classes": [{"id": each, "name": names[each], "label_pixels": int(labelled[each])} for each in classes],
        "pixels": confusion[np.ix_(classes, classes)].tolist(),
    }


def extremes(
    metric: ConfusionCounts, names: Sequence[str], records: Sequence[Record], threshold: float, kept: int = KEPT
) -> dict[str, Any]:
    """List the images with the lowest and the highest IoU at one threshold; no image is on both lists.

    An image's IoU is the mean over the classes that are labelled or predicted in it.
    """
    counted = {record["image"]: record for record in records if "cells" in record}
    ranks = rank_images(list(counted.values()), metric, threshold)
    worst = ranks[: min(kept, (len(ranks) + 1) // 2)]
    best = ranks[len(worst) :][::-1][:kept]

    def entry(iou: float, image_id: str) -> dict[str, Any]:
        shown = np.unique(as_cells(counted[image_id]["cells"])[:, 0]).tolist()
        return {"image": image_id, "iou": iou, "classes": [{"id": each, "name": names[each]} for each in shown]}

    return {
        "threshold": threshold,
        "worst": [entry(*rank) for rank in worst],
        "best": [entry(*rank) for rank in best],
    }


def _with_intervals(counts: ImageCounts, absent: str) -> dict[str, Any]:
    intervals = bootstrap(counts, absent)
    return {
        name: {"value": number(float(value)), "interval": None if math.isnan(low) else [low, high]}
        for name, value in metrics(*counts.total(), absent).items()
        for low, high in [intervals[name]]
    }
