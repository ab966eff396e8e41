"""Many runs at once that share what they can.

Runs whose configurations differ only in what is made of a forward (rules, layers, refinement, counting, how captions
are read) are a group: each picture goes through the model once for all of them, and again only where prompts differ.
Every run has its own folder, and in it what it would have written alone; of thumbnails none are kept.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from diffusion_feature import FeatureExtractor

from goca.benchmark.benchmark import Benchmark
from goca.benchmark.counting import Read, changes, keep, read_image, record_of
from goca.benchmark.fingerprints import MadeFrom
from goca.benchmark.run_store import RunStore
from goca.benchmark.shared_forward import Shared
from goca.datasets import Dataset, Sample, load_dataset
from goca.files.bounded_json import read_json
from goca.files.log import Record
from goca.method.augmentation import augmentations
from goca.segmenter import Segmenter

Results = dict[str, Any]
Progress = Callable[[str, list[str]], Iterable[str]]
AFTER = ("background", "thresholds", "add_background", "add_missing")  # fields of a data set that no forward depends on


def run_together(
    benchmarks: Sequence[Benchmark],
    *,
    rank: int = 0,
    world: int = 1,
    progress: Progress = lambda name, ids: ids,
) -> list[Results | None]:
    """The results of every run, in order; None while other processes have images to count, as in `Benchmark.run`.

    progress   wraps the ids of the images that are left of a group, whose name comes first
    A run that shares nothing (another method or task) is run alone. `batch_size` and `max_bytes` say nothing to the
    others: their pictures go one by one.
    """
    found: dict[Path, Results | None] = {}
    weights = Weights()
    for group in groups(benchmarks):
        first = group[0]
        if shares(first):
            found |= run_group(group, weights, rank, world, progress)
        else:
            weights.drop()
            found[first.run_dir] = first.run(rank=rank, world=world, progress=lambda ids: progress("1 run", ids))
    return [found[benchmark.run_dir] for benchmark in benchmarks]


def groups(benchmarks: Sequence[Benchmark]) -> list[list[Benchmark]]:
    """Runs that share forwards, each folder once; groups on the same weights follow each other."""
    found: dict[str, dict[Path, Benchmark]] = {}
    for benchmark in benchmarks:
        key = forward_key(benchmark) if shares(benchmark) else str(benchmark.run_dir)
        found.setdefault(key, {}).setdefault(benchmark.run_dir, benchmark)
    return sorted((list(group.values()) for group in found.values()), key=lambda group: weights_key(group[0]))


def shares(benchmark: Benchmark) -> bool:
    return type(benchmark) is Benchmark and benchmark.model.method == "goca" and benchmark.published


def weights_key(benchmark: Benchmark) -> str:
    """What decides which weights are loaded, and where."""
    model, of = benchmark.model, ("device", "dtype", "offload", "int8_text", "variant", "vae_dtype")
    return json.dumps([model.pipeline, model.version, model.img_size, *(getattr(benchmark, name) for name in of)])


def forward_key(benchmark: Benchmark) -> str:
    """What a forward depends on, prompts apart."""
    settings, protocol = benchmark.settings(), benchmark.protocol
    dataset = {name: value for name, value in settings.pop("dataset").items() if name not in AFTER}
    del settings["model"], settings["fixed_threshold"]
    looks = [dataclasses.astuple(view) for view in augmentations(benchmark.model)]
    switches = [protocol.noise, protocol.posterior, protocol.seed, protocol.palette_resize]
    return json.dumps([weights_key(benchmark), dataset, settings, looks, switches, benchmark.limit], default=str)


class Weights:
    """The model that was loaded last; another one takes its place."""

    def __init__(self) -> None:
        self.key = ""
        self.extractor: FeatureExtractor | None = None

    def drop(self) -> None:
        self.key, self.extractor = "", None

    def of(self, benchmark: Benchmark) -> FeatureExtractor:
        if self.extractor is None or self.key != weights_key(benchmark):
            self.drop()
            self.extractor = benchmark.load(Segmenter).extractor
            self.key = weights_key(benchmark)
        return self.extractor


@dataclass
class Run:
    """One run of a group, with its folder open."""

    benchmark: Benchmark
    dataset: Dataset
    store: RunStore
    made_from: MadeFrom
    ids: Sequence[str]
    known: dict[str, Record] = field(init=False)
    changed: dict[str, str] = field(init=False)  # images that are counted from something else than there is now

    def __post_init__(self) -> None:
        self.known, self.metric = self.store.records(), self.benchmark.metric(self.dataset)
        self.changed = changes(self.ids, self.known, self.made_from)

    def lacks(self, image_id: str) -> bool:
        return image_id in self.changed or "cells" not in self.known.get(image_id, {})

    def finished(self, ids: Sequence[str]) -> Results | None:
        """What was summed up before, if it was of just these images."""
        path = self.store.folder / "results.json"
        if any(self.lacks(image_id) for image_id in ids) or not path.is_file():
            return None
        try:
            results = read_json(path)
            whole = results["images"]["listed"] == len(ids) and not results["images"]["skipped"]
        except (ValueError, KeyError, TypeError):  # of another kind: written anew
            return None
        return results if whole else None


def run_group(
    group: Sequence[Benchmark], weights: Weights, rank: int, world: int, progress: Progress
) -> dict[Path, Results | None]:
    dataset = load_dataset(group[0].dataset)
    ids = dataset.ids[: group[0].limit]
    made_from = group[0].made_from(dataset, group[0].prompts(dataset))
    with ExitStack() as stack:
        stores = (stack.enter_context(each.store(dataset, rank)) for each in group)
        runs = [Run(benchmark, dataset, store, made_from, ids) for benchmark, store in zip(group, stores)]
        count_together(runs, ids[rank::world], weights, progress)
        return {
            run.benchmark.run_dir: run.finished(ids)
            or run.benchmark.sum_up(dataset, ids, run.metric.empty_copy(), run.store, made_from if world > 1 else None)
            for run in runs
        }


def count_together(runs: Sequence[Run], ids: Sequence[str], weights: Weights, progress: Progress) -> None:
    """Count what each run lacks of these images."""
    left = [image_id for image_id in ids if any(run.lacks(image_id) for run in runs)]
    shared: Shared | None = None
    for image_id in progress(f"{len(runs)} runs" if len(runs) > 1 else "1 run", left):
        lacking = [number for number, run in enumerate(runs) if run.lacks(image_id)]
        once = OneImage(runs[0].dataset)
        reads = {number: read_image(once, image_id, runs[number].metric, runs[number].made_from) for number in lacking}
        usable = {number: read for number, read in reads.items() if isinstance(read, Read)}
        if usable and shared is None:
            shared = Shared([run.benchmark for run in runs], runs[0].dataset, weights.of(runs[0].benchmark))
            for run in runs:
                run.store.declare(shared.origin)
        start = time.perf_counter()
        predictions = shared.predict(next(iter(usable.values())).sample, list(usable)) if shared and usable else {}
        seconds = (time.perf_counter() - start) / max(1, len(usable))
        for number, read in reads.items():
            run = runs[number]
            if isinstance(read, Read):
                read = record_of(read, predictions[number], seconds, run.metric)
            keep([read], run.known, run.store, run.changed)


class OneImage:
    """A data set that reads its first sample only once."""

    def __init__(self, dataset: Dataset):
        self.name, self.class_names, self.ids = dataset.name, dataset.class_names, dataset.ids
        self.sample: Callable[[str], Sample] = cache(dataset.sample)
