"""Metrics from pixel counts: IoU and related metrics, with bootstrap intervals over images.

All are functions of three counts per class: `intersection` (pixels of the class that were predicted as it),
`union` (pixels of the class or predicted as it) and `labelled` (pixels of the class).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from goca.errors import GocaError

EPSILON = 1e-8  # added to the union, as in the released evaluation
RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
CHUNK = 1 << 19  # weights that are drawn at once: resamples x images
PART = 256  # images whose counts are read at once

Counts = NDArray[np.int64] | NDArray[np.float64]


class MetricError(GocaError, ValueError):
    """Scores, labels or settings are invalid; the message says what was expected and what was found."""


def as_cells(cells: ArrayLike) -> NDArray[np.int64]:
    """Counts [cells, 4], as `update` returns them. Raises MetricError for anything else."""
    try:
        found = np.asarray(cells)
        if not found.size:
            return np.zeros((0, 4), np.int64)
        if found.dtype.kind not in "iu" or found.ndim != 2 or found.shape[1] != 4:
            raise ValueError
        return found.astype(np.int64, copy=False)
    except (ValueError, TypeError, OverflowError):
        raise MetricError("counts must be rows of four whole numbers (label, class, wins, pixels)") from None


def packed(cells: Any) -> Any:
    """Counts as an array, in 32 bits if they fit: a tenth of the memory of lists. Other values stay unchanged."""
    try:
        found = as_cells(cells)
    except MetricError:
        return cells
    small = np.iinfo(np.int32)
    fits = not found.size or (found.min() >= small.min and found.max() <= small.max)
    return found.astype(np.int32) if fits else found


class ImageCounts(NamedTuple):
    """The three counts of every image at one threshold, each [images, classes]."""

    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    labelled: NDArray[np.int64]

    def total(self) -> ImageCounts:
        """The counts of the whole data set, each [classes]."""
        return ImageCounts(*(counts.sum(axis=0) for counts in self))


def class_iou(intersection: Counts, union: Counts, absent: str) -> NDArray[np.float64]:
    """IoU of each class [..., C]; one with neither prediction nor label is 0, or NaN under absent="skip"."""
    iou = intersection / (EPSILON + union)
    return np.where(union == 0, np.nan, iou) if absent == "skip" else iou


def mean_iou(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes [..., C] that are not NaN; NaN if there are none."""
    return ratio(np.nansum(iou, axis=-1), (~np.isnan(iou)).sum(axis=-1))


def metrics(intersection: Counts, union: Counts, labelled: Counts, absent: str) -> dict[str, NDArray[np.float64]]:
    """The metrics by name, each [...], from counts [..., C]; NaN if nothing was counted.

    mIoU                      mean of IoU_c over classes
    mIoU_without_background   the same without class 0
    frequency_weighted_IoU    sum of f_c IoU_c, f_c being the share of labelled pixels that are of class c
    pixel_accuracy            share of labelled pixels that were predicted correctly
    """
    iou, pixels = class_iou(intersection, union, absent), labelled.sum(axis=-1)
    return {
        "mIoU": mean_iou(iou),
        "mIoU_without_background": mean_iou(iou[..., 1:]),
        "frequency_weighted_IoU": ratio((labelled * np.nan_to_num(iou)).sum(axis=-1), pixels),
        "pixel_accuracy": ratio(intersection.sum(axis=-1), pixels),
    }


def image_counts(images: Sequence[ArrayLike], num_classes: int, level: int) -> ImageCounts:
    """Counts of each image at one threshold.

    images  per image, rows (label, class, wins, pixels) as in goca.evaluation.decision
    level   the threshold's index in ascending order: a class is predicted where level < wins, otherwise background;
            ids beyond the classes count as no prediction
    """
    found = ImageCounts(*(np.zeros((len(images), num_classes), np.int64) for _ in ImageCounts._fields))
    for start in range(0, len(images), PART):
        part = slice(start, start + PART)
        for whole, some in zip(found, _image_counts(images[part], num_classes, level)):
            whole[part] = some
    return found


def _image_counts(images: Sequence[ArrayLike], num_classes: int, level: int) -> ImageCounts:
    """`image_counts` of a few images."""
    cells = [as_cells(each) for each in images]
    image = np.repeat(np.arange(len(cells)), [len(each) for each in cells])
    label, best, wins, pixels = np.concatenate([np.zeros((0, 4), np.int64), *cells]).T
    predicted = np.where(level < wins, best, 0)

    def count(classes: NDArray, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        places = (image * num_classes + classes)[kept]
        sums = np.bincount(places, pixels[kept], minlength=len(cells) * num_classes)  # float64: exact to 2^53
        return sums.astype(np.int64).reshape(len(cells), num_classes)

    intersection, labelled = count(label, label == predicted), count(label, label < num_classes)
    return ImageCounts(intersection, labelled + count(predicted, predicted < num_classes) - intersection, labelled)


def image_iou(counts: ImageCounts) -> NDArray[np.float64]:
    """IoU of each image: the mean over the classes that it shows or that were predicted in it; NaN if all is void."""
    return mean_iou(class_iou(counts.intersection, counts.union, absent="skip"))


def bootstrap(
    counts: ImageCounts, absent: str, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = SEED
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of `metrics` over bootstrap samples of the images; NaN without images.

    The same counts in the same order with the same seed give the same intervals.
    """
    draws: dict[str, list[NDArray[np.float64]]] = {}
    exact = [each.astype(np.float64) for each in counts]  # whole numbers below 2^53: sums are exact in any order
    for weights in resampled(len(counts.labelled), resamples, seed):
        intersection, union, labelled = (weights @ each for each in exact)
        for name, values in metrics(intersection, union, labelled, absent).items():
            draws.setdefault(name, []).append(values)
    return {name: percentile_interval(np.concatenate(values), confidence) for name, values in draws.items()}


def resampling(images: int) -> dict[str, Any]:
    """A description of a run's intervals, for results.json."""
    return {
        "resampled": "images",
        "images": images,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "interval": "percentile",
        "seed": SEED,
    }


def resampled(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """The number of times that each image was drawn: arrays [some of the resamples, images]."""
    draw, step = np.random.default_rng(seed), max(1, CHUNK // max(images, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = draw.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(places.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)


def percentile_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The central interval with the share `confidence` of the defined values; NaN if none is defined."""
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, tails) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def ratio(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """The ratio of two counts; NaN if the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)
