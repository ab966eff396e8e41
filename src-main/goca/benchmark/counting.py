"""The counting loop: read, segment and count each image, and write its record; images in the run folder are skipped.

runs = [CountedRun(store, metric, ids)]          # or several, which share forward passes
count_images(dataset, ids, runs, load_predictor)
records = collect(ids, metric.empty_copy(), store)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from goca.benchmark.ahead import Behind, read_ahead
from goca.benchmark.fingerprints import MadeFrom
from goca.benchmark.label_maps import LabelMaps
from goca.benchmark.prediction import Case, Outcome, Predictor
from goca.benchmark.run_store import RunStore
from goca.datasets import VOID, Dataset, SampleError
from goca.evaluation.counts import ConfusionCounts, LabelError, as_array
from goca.evaluation.presence import as_record
from goca.files.log import Record
from goca.report.gallery import Gallery

AHEAD = 8  # images
BEHIND = 2  # batches, on an accelerator


class Watcher(Protocol):
    """Receives every counted image with its scores; the arguments are those of `Gallery.offer`."""

    def offer(
        self, image_id: str, image: Any, label: NDArray[np.integer], scores: Any, class_ids: Sequence[int], cells: Any
    ) -> None: ...


class CountedRun:
    """One run while its images are counted: its folder, its metric, and the initial content of the folder.

    store       the open run folder
    metric      its settings determine what is counted; its own counts are only a by-product
    ids         images that are checked for changed files and prompts
    made_from   finds images whose files or prompts have changed since they were counted: they are counted again.
                None: no such check
    label_maps  writes every image's predicted label map; images without these files are segmented again
    """

    def __init__(
        self,
        store: RunStore,
        metric: ConfusionCounts,
        ids: Iterable[str],
        *,
        made_from: MadeFrom | None = None,
        label_maps: LabelMaps | None = None,
    ) -> None:
        self.store, self.metric, self.made_from, self.label_maps = store, metric, made_from, label_maps
        self.known = store.records()
        self.changed = changes(ids, self.known, made_from)
        self.watchers: list[Watcher] = [] if label_maps is None else [label_maps]

    def keep_thumbnails(self, threshold: float, class_names: Sequence[str]) -> None:
        """Keep the images with the lowest and the highest IoU at this threshold as thumbnails, for the report."""
        known = list(self.known.values())
        self.watchers.append(Gallery(self.store.folder, self.metric, threshold, class_names, known))

    def lacks(self, image_id: str) -> bool:
        """Whether an image must be counted, by the initial content of the folder. Skipped images are tried again."""
        if image_id in self.changed or "cells" not in self.known.get(image_id, {}):
            return True
        return self.label_maps is not None and not self.label_maps.complete(image_id)

    def skip(self, image_id: str, reason: str) -> None:
        """Record why an image is skipped."""
        self._keep({"image": image_id, "skipped": reason})

    def count(self, case: Case, outcome: Outcome, model_seconds: float) -> None:
        """Count and record one image, or record why it is skipped; watchers receive counted images."""
        if isinstance(outcome, SampleError):
            return self.skip(case.sample.id, str(outcome))
        start, sample = time.perf_counter(), case.sample
        scores = None if outcome.scores is None else as_array(outcome.scores)
        cells = self.metric.update(scores, case.label, outcome.class_ids)
        seconds = {"read": case.read_seconds, "model": model_seconds, "evaluation": time.perf_counter() - start}
        for watcher in self.watchers:
            watcher.offer(sample.id, sample.image, case.label, scores, outcome.class_ids, cells)
        self._keep(
            {
                "image": sample.id,
                "classes": [int(class_id) for class_id in outcome.class_ids],
                "lost": [int(class_id) for class_id in outcome.lost],
                "notes": list(outcome.notes),
                **({} if outcome.words is None else as_record(outcome.words, sample.present)),
                "seconds": {name: round(value, 6) for name, value in seconds.items()},
                **case.made_from,
                "cells": cells.tolist(),
            }
        )

    def _keep(self, record: Record) -> None:
        """Write a record if it is new; a record that replaces outdated counts contains the reason and their number."""
        earlier, reason = self.known.get(record["image"], {}), self.changed.get(record["image"])
        again = earlier.get("again", 0) + (reason is not None)
        if again:
            record |= {"again": again, "changed": earlier.get("changed") if reason is None else reason}
        if "cells" in record or record != earlier:  # the same skip for the same reason is written once
            self.store.append(record)


def count_images(
    dataset: Dataset,
    ids: Sequence[str],
    runs: Sequence[CountedRun],
    load: Callable[[], Predictor],
    *,
    batch_size: int = 1,
    progress: Callable[[list[str]], Iterable[str]] = iter,
    ahead: int = AHEAD,
    behind: int = 0,
) -> None:
    """Segment and count the images that any of the runs lacks; each is read once for all runs.

    load        called once, and only if there is an image to segment
    batch_size  images per batch
    progress    wraps the remaining ids, such as tqdm
    ahead       number of images that threads read while others are segmented; results do not depend on it
    behind      number of batches that a thread counts while the next ones are segmented; results do not depend on it.
                0: the record of an image is on disk before the next image starts

    An image that cannot be used is recorded with the reason.
    """
    left = [image_id for image_id in ids if any(run.lacks(image_id) for run in runs)]
    readings = read_ahead(left, lambda image_id: read_image(dataset, image_id, runs), ahead)
    predictor = cache(load)
    batch: list[Reading] = []
    with closing(readings), Behind(behind) as later:
        for _, reading in zip(progress(left), readings):
            for number, reason in reading.skipped.items():
                later(runs[number].skip, reading.image_id, reason)
            if reading.cases:
                batch.append(reading)
            if len(batch) == batch_size:
                later(count_batch, *segmented(batch, predictor()), runs)
                batch = []
        if batch:
            later(count_batch, *segmented(batch, predictor()), runs)


@dataclass(frozen=True)
class Reading:
    """An image that was read, for the runs that lack it.

    cases    one for each run that can count it
    skipped  number of each other run -> the reason
    """

    image_id: str
    cases: Sequence[Case]
    skipped: Mapping[int, str]


def read_image(dataset: Dataset, image_id: str, runs: Sequence[CountedRun]) -> Reading:
    """Read an image and its label once, for all runs that lack it; the runs are not changed."""
    start = time.perf_counter()
    lacking = {number: run for number, run in enumerate(runs) if run.lacks(image_id)}
    cases: list[Case] = []
    skipped: dict[int, str] = {}
    try:
        sample = dataset.sample(image_id)
        for number, run in lacking.items():
            made_from = {} if run.made_from is None else run.made_from.of(sample)  # before the files are decoded
            try:
                label = run.metric.checked_label(_without_void(sample.label, run.metric))
            except LabelError as error:
                skipped[number] = str(error)
            else:
                cases.append(Case(sample, label, number, made_from=made_from))
    except SampleError as error:
        return Reading(image_id, [], dict.fromkeys(lacking, str(error)))
    seconds = (time.perf_counter() - start) / max(1, len(lacking))
    return Reading(image_id, [replace(case, read_seconds=seconds) for case in cases], skipped)


def segmented(batch: Sequence[Reading], predict: Predictor) -> tuple[list[Case], Sequence[Outcome], float]:
    """The cases of a batch, one outcome per case, and the mean time per case in seconds."""
    cases = [case for reading in batch for case in reading.cases]
    start = time.perf_counter()
    outcomes = predict(cases)
    return cases, outcomes, (time.perf_counter() - start) / len(cases)


def count_batch(
    cases: Sequence[Case], outcomes: Sequence[Outcome], model_seconds: float, runs: Sequence[CountedRun]
) -> None:
    """Count and record the images of a batch one by one."""
    for case, outcome in zip(cases, outcomes, strict=True):
        runs[case.run].count(case, outcome, model_seconds)


def changes(ids: Iterable[str], known: Mapping[str, Record], made_from: MadeFrom | None) -> dict[str, str]:
    """Images whose files or prompts have changed since they were counted -> what was changed."""
    if made_from is None:
        return {}
    counted = ((image_id, known[image_id]) for image_id in ids if "cells" in known.get(image_id, {}))
    return {image_id: reason for image_id, record in counted if (reason := made_from.changed(record))}


def collect(
    ids: Sequence[str], metric: ConfusionCounts, store: RunStore, made_from: MadeFrom | None = None
) -> list[Record] | None:
    """Add the counts of all processes to the metric; returns the records in the order of `ids`, None if any is missing.

    made_from  as in `CountedRun`; None: no other process counts images again
    """
    known = store.records()
    if any(image_id not in known for image_id in ids) or changes(ids, known, made_from):
        return None
    records = [known[image_id] for image_id in ids]
    for record in records:
        metric.add(record.get("cells", []))
    return records


def _without_void(label: NDArray[np.uint8], metric: ConfusionCounts) -> NDArray[np.uint8]:
    """The label with VOID pixels unchanged, if the metric ignores them, or else as background."""
    return label if metric.ignore_index == VOID else np.where(label == VOID, 0, label).astype(label.dtype)
