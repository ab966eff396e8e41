"""Several runs at once, which share forward passes if possible.

Runs whose configurations differ only in what is computed from a forward pass (rules, layers, refinement, counting, how
captions are read) form a group: each image goes through the model once for all of them, and again only if prompts
differ. Every run has its own folder, with the same files as a separate run, except thumbnails and label maps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_feature import FeatureExtractor
from diffusion_feature.loading import pick_device

from goca.benchmark.benchmark import Benchmark
from goca.benchmark.checks import NothingCounted, refuse_empty
from goca.benchmark.counting import CountedRun, count_images
from goca.benchmark.shared_forward import SharedForward
from goca.datasets import load_dataset
from goca.files.bounded_json import read_json
from goca.method.augmentation import augmentations
from goca.segmenter import Segmenter

Results = dict[str, Any]
Progress = Callable[[str, list[str]], Iterable[str]]
AFTER = (
    "background",
    "thresholds",
    "add_background",
    "add_missing",
)  # fields of a data set that do not affect forward passes


def run_together(
    benchmarks: Sequence[Benchmark],
    *,
    rank: int = 0,
    world: int = 1,
    progress: Progress = lambda name, ids: ids,
) -> list[Results | None]:
    """The results of every run, in order; None while other processes have images to count, as in `Benchmark.run`.

    progress   wraps the remaining ids of a group; its first argument is the group's name

    A run that cannot share forward passes (another method or task) is run separately. For all others, `batch_size` and
    `max_bytes` have no effect: their images are segmented one by one.
    Raises NothingCounted at the end, when the other runs are finished, for all runs in which every image was skipped.
    """
    found: dict[Path, Results | None] = {}
    for device in {benchmark.device for benchmark in benchmarks}:
        pick_device(device)  # before any folder is created
    weights = Weights()
    for group in groups(benchmarks):
        first = group[0]
        if shares(first):
            found |= run_group(group, weights, rank, world, progress)
        else:
            weights.drop()
            try:
                found[first.run_dir] = first.run(rank=rank, world=world, progress=lambda ids: progress("1 run", ids))
            except NothingCounted as error:  # the other runs continue
                found |= error.runs
    refuse_empty(found)
    return [found[benchmark.run_dir] for benchmark in benchmarks]


def groups(benchmarks: Sequence[Benchmark]) -> list[list[Benchmark]]:
    """Runs that share forward passes, each folder once; groups on the same weights follow each other."""
    found: dict[str, dict[Path, Benchmark]] = {}
    for benchmark in benchmarks:
        key = forward_key(benchmark) if shares(benchmark) else str(benchmark.run_dir)
        found.setdefault(key, {}).setdefault(benchmark.run_dir, benchmark)
    return sorted((list(group.values()) for group in found.values()), key=lambda group: weights_key(group[0]))


def shares(benchmark: Benchmark) -> bool:
    """Whether its forward passes can serve other runs too."""
    return benchmark.strategy.prompted and benchmark.model.method == "goca" and benchmark.published


def weights_key(benchmark: Benchmark) -> str:
    """Everything that decides which weights are loaded, and where."""
    model, of = benchmark.model, ("device", "dtype", "offload", "int8_text", "variant", "vae_dtype")
    return json.dumps([model.pipeline, model.version, model.img_size, *(getattr(benchmark, name) for name in of)])


def forward_key(benchmark: Benchmark) -> str:
    """Everything that affects a forward pass, except prompts."""
    settings, protocol = benchmark.settings(), benchmark.protocol
    dataset = {name: value for name, value in settings.pop("dataset").items() if name not in AFTER}
    del settings["model"], settings["fixed_threshold"]
    passes = [dataclasses.astuple(each) for each in augmentations(benchmark.model)]
    switches = [protocol.noise, protocol.posterior, protocol.seed, protocol.palette_resize]
    return json.dumps([weights_key(benchmark), dataset, settings, passes, switches, benchmark.limit], default=str)


class Weights:
    """The model that was loaded last; the next one replaces it."""

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


def run_group(
    group: Sequence[Benchmark], weights: Weights, rank: int, world: int, progress: Progress
) -> dict[Path, Results | None]:
    dataset = load_dataset(group[0].dataset)
    ids = dataset.ids[: group[0].limit]
    made_from = group[0].made_from(dataset, group[0].prompts(dataset))
    with ExitStack() as stack:
        stores = [stack.enter_context(each.store(dataset, rank)) for each in group]
        metrics = [benchmark.strategy.metric(dataset) for benchmark in group]
        runs = [CountedRun(store, metric, ids, made_from=made_from) for store, metric in zip(stores, metrics)]

        def load() -> SharedForward:
            shared = SharedForward(group, dataset, weights.of(group[0]))
            for store in stores:
                store.declare(shared.origin)
            return shared

        name = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
        behind = group[0].behind
        count_images(dataset, ids[rank::world], runs, load, progress=partial(progress, name), behind=behind)
        return {
            benchmark.run_dir: finished(run, ids)
            or benchmark.sum_up(dataset, ids, run.metric.empty_copy(), run.store, made_from if world > 1 else None)
            for benchmark, run in zip(group, runs)
        }


def finished(run: CountedRun, ids: Sequence[str]) -> Results | None:
    """The results that a folder held at the start, if they are of just these images, all of them counted."""
    path = run.store.folder / "results.json"
    if any(run.lacks(image_id) for image_id in ids) or not path.is_file():
        return None
    try:
        results = read_json(path)
        whole = results["images"]["listed"] == len(ids) and not results["images"]["skipped"]
    except (ValueError, KeyError, TypeError):  # of another kind: written anew
        return None
    return results if whole else None
