"""One run over a benchmark: segment every image, count it, keep the counts, and sum up when all are there."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goca.benchmark.fingerprints import MadeFrom
from goca.benchmark.label_maps import LabelMaps
from goca.benchmark.run_store import RunStore
from goca.datasets import VOID, Dataset, DatasetConfig, Sample, SampleError, class_label
from goca.evaluation.mean_iou import LabelError, MeanIoU, as_array
from goca.evaluation.presence import Word, as_record
from goca.files.log import Record
from goca.protocol import Protocol
from goca.report.gallery import Gallery


@dataclass(frozen=True)
class Prediction:
    """What a segmentor says of one image.

    scores     [k+1, g, h], the last map being the background's; None: everything is background
    class_ids  the k ids in map order
    lost       those of them whose words were cut off, so that their map is empty
    notes      warnings that the results should keep
    words      the classes that were looked for, with their presence; None: they were told to be there
    """

    scores: Any
    class_ids: Sequence[int]
    lost: Sequence[int] = ()
    notes: Sequence[str] = ()
    words: Sequence[Word] | None = None


# several samples at once; for one that it cannot use, the error instead
Segmentor = Callable[[Sequence[Sample]], Sequence[Prediction | SampleError]]


def metric_for(dataset: Dataset, config: DatasetConfig, protocol: Protocol, extra: Sequence[float] = ()) -> MeanIoU:
    """The metric that a data set and a protocol ask for; `extra` thresholds are counted along with the swept ones."""
    return MeanIoU(
        num_classes=len(dataset.class_names),
        background=config.background,
        thresholds=[*config.thresholds, *(threshold for threshold in extra if threshold not in config.thresholds)],
        ignore_index=VOID if protocol.void == "ignore" else None,
        absent="skip" if protocol.absent_classes == "skip" else "zero",
    )


def count_images(
    dataset: Dataset,
    ids: Sequence[str],
    load_segmentor: Callable[[], Segmentor],
    metric: MeanIoU,
    store: RunStore,
    *,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 1,
    drawn_at: float | None = None,
    label_maps: LabelMaps | None = None,
    made_from: MadeFrom | None = None,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> None:
    """Segment and count this process's share of the images; what the store holds already is not done again.

    ids             all images of the run; process `rank` of `world` takes every world-th of them
    load_segmentor  called once, and only if there is an image to segment
    batch_size      images that are segmented at once
    metric          its settings decide what is counted; its own counts are only a by-product
    made_from       tells images whose files or prompts are no longer what their counts were made from: they are counted
                    again; None: what is counted stays counted
    drawn_at        the threshold at which the worst and best images are kept as thumbnails; None: none are
    label_maps      keeps every image's predicted label map; images whose files are missing are segmented again
    progress        wraps the ids that are left, such as tqdm
    An image that cannot be used is recorded with the reason; earlier skips are tried again.
    """
    known = store.records()
    changed = changes(ids[rank::world], known, made_from)
    done = {image_id for image_id, record in known.items() if "cells" in record and image_id not in changed}
    if label_maps is not None:
        done = set(filter(label_maps.complete, done))
    left = [image_id for image_id in ids[rank::world] if image_id not in done]
    segmentor = Once(load_segmentor)
    watchers: list[Watcher] = [] if label_maps is None else [label_maps]
    if drawn_at is not None:
        names = [class_label(dataset.class_names, class_id) for class_id in range(metric.num_classes)]
        watchers.append(Gallery(store.folder, metric, drawn_at, names, list(known.values())))
    ready: list[Read] = []
    for image_id in progress(left):
        read = read_image(dataset, image_id, metric, made_from)
        records = [read] if isinstance(read, dict) else []
        if isinstance(read, Read):
            ready.append(read)
        if len(ready) == batch_size:
            records += _count(ready, segmentor.ready(), metric, watchers)
            ready = []
        keep(records, known, store, changed)
    if ready:
        keep(_count(ready, segmentor.ready(), metric, watchers), known, store, changed)


def changes(ids: Iterable[str], known: Mapping[str, Record], made_from: MadeFrom | None) -> dict[str, str]:
    """The images that are counted from something else than there is now -> what was changed."""
    if made_from is None:
        return {}
    counted = ((image_id, known[image_id]) for image_id in ids if "cells" in known.get(image_id, {}))
    return {image_id: reason for image_id, record in counted if (reason := made_from.changed(record))}


def keep(
    records: Iterable[Record], known: Mapping[str, Record], store: RunStore, changed: Mapping[str, str] | None = None
) -> None:
    """Write the records that say something new; `changed`: of which images they replace the counts, and why."""
    for record in records:
        earlier, reason = known.get(record["image"], {}), (changed or {}).get(record["image"])
        again = earlier.get("again", 0) + (reason is not None)
        if again:
            record |= {"again": again, "changed": earlier.get("changed") if reason is None else reason}
        if record != earlier:  # the same skip for the same reason need not be said twice
            store.append(record)


def collect(
    ids: Sequence[str], metric: MeanIoU, store: RunStore, made_from: MadeFrom | None = None
) -> list[Record] | None:
    """Add up all processes' counts: the records in the order of `ids`, or None while images are still missing.

    made_from  as in `count_images`; None: nobody else has images to count again
    """
    known = store.records()
    if any(image_id not in known for image_id in ids) or changes(ids, known, made_from):
        return None
    records = [known[image_id] for image_id in ids]
    for record in records:
        metric.add(record.get("cells", []))
    return records


class Watcher(typing.Protocol):
    """What is shown every image that is counted, with its scores; the arguments are those of `Gallery.offer`."""

    def offer(
        self, image_id: str, image: Any, label: NDArray[np.integer], scores: Any, class_ids: Sequence[int], cells: Any
    ) -> None: ...


class Once:
    """A segmentor that is loaded when it is first called."""

    def __init__(self, load: Callable[[], Segmentor]) -> None:
        self._load = load
        self._segmentor: Segmentor | None = None

    def ready(self) -> Segmentor:
        if self._segmentor is None:
            self._segmentor = self._load()
        return self._segmentor


@dataclass(frozen=True)
class Read:
    """A sample, its label map as it is counted, the seconds that reading them took, and what they were read from."""

    sample: Sample
    label: NDArray[np.integer]
    seconds: float
    made_from: Mapping[str, Any] = field(default_factory=dict)


def read_image(dataset: Dataset, image_id: str, metric: MeanIoU, made_from: MadeFrom | None = None) -> Read | Record:
    """An image and its label as the metric counts it, or the record of why it is skipped."""
    start = time.perf_counter()
    try:
        sample = dataset.sample(image_id)
        marks = {} if made_from is None else made_from.of(sample)
        label = metric.checked_label(_without_void(sample.label, metric))
    except (SampleError, LabelError) as error:
        return {"image": image_id, "skipped": str(error)}
    return Read(sample, label, time.perf_counter() - start, marks)


def _count(batch: Sequence[Read], segment: Segmentor, metric: MeanIoU, watchers: Sequence[Watcher]) -> list[Record]:
    """Segment several samples at once, and count each."""
    start = time.perf_counter()
    predictions = segment([read.sample for read in batch])
    seconds = (time.perf_counter() - start) / len(batch)
    pairs = zip(batch, predictions, strict=True)
    return [record_of(read, prediction, seconds, metric, watchers) for read, prediction in pairs]


def record_of(
    read: Read, prediction: Prediction | SampleError, model: float, metric: MeanIoU, watchers: Sequence[Watcher] = ()
) -> Record:
    """Count one image: its record. `model`: the seconds that its prediction took; watchers are shown the image."""
    if isinstance(prediction, SampleError):
        return {"image": read.sample.id, "skipped": str(prediction)}
    start = time.perf_counter()
    scores = None if prediction.scores is None else as_array(prediction.scores)
    if scores is None:
        cells = metric.update_background(read.label)
    else:
        cells = metric.update(scores, read.label, prediction.class_ids)
    seconds = {"read": read.seconds, "model": model, "evaluation": time.perf_counter() - start}
    for watcher in watchers:
        watcher.offer(read.sample.id, read.sample.image, read.label, scores, prediction.class_ids, cells)
    return {
        "image": read.sample.id,
        "classes": [int(class_id) for class_id in prediction.class_ids],
        "lost": [int(class_id) for class_id in prediction.lost],
        "notes": list(prediction.notes),
        **({} if prediction.words is None else as_record(prediction.words, read.sample.present)),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        **read.made_from,
        "cells": cells.tolist(),
    }


def _without_void(label: NDArray[np.uint8], metric: MeanIoU) -> NDArray[np.uint8]:
    """VOID pixels as the metric wants them: left to be ignored, or counted as background."""
    return label if metric.ignore_index == VOID else np.where(label == VOID, 0, label).astype(label.dtype)
