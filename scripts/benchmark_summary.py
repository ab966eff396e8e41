"""Measure processor time and memory of the summary of a large run: 5000 images, 151 classes, nine thresholds.

    python3 scripts/benchmark.py summary [--images 5000 --json FILE]

The run folder has random label maps with as many counts per image as a photo of ADE20K. The measurement covers what a
finished run's command does when it is repeated: open the folder, read the records, skip the counted images, add up all
counts, bootstrap, and write the report. It runs in a separate process, for its own peak memory; the memory for
importing the modules is printed next to it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from goca.benchmark.counting import CountedRun, collect, count_images
from goca.benchmark.run_store import RunStore
from goca.datasets import DatasetConfig
from goca.evaluation import MeanIoU
from goca.files.atomic import write_text
from goca.protocol import Protocol
from goca.report.results import summarise, write_results

CLASSES, ROWS = 151, 340  # rows of counts per image: 27 MB for 5000 images
THRESHOLDS = [t / 10 for t in range(-4, 5)]
GOAL = {"cpu seconds": 3.0, "bytes": 200e6}
SETTINGS = {"made by": "benchmark_summary"}


def metric() -> MeanIoU:
    return MeanIoU(CLASSES, "offset", THRESHOLDS, ignore_index=255)


def make_folder(folder: Path, images: int) -> list[str]:
    """A run folder with random counts; returns the ids."""
    rng, ids = np.random.default_rng(0), [f"ADE_val_{number:08d}" for number in range(images)]
    with RunStore(folder, SETTINGS) as store:
        store.declare({"device": "cpu"})
        for image_id in ids:
            classes = rng.choice(CLASSES, 12, replace=False)
            places = rng.choice(13 * 12 * 10, ROWS, replace=False)
            label, best, wins = np.unravel_index(places, (13, 12, 10))
            cells = np.stack([np.append(classes, 0)[label], classes[best], wins, rng.integers(1, 9999, ROWS)], axis=1)
            seconds = {"read": 0.01, "model": 1.0, "evaluation": 0.01}
            store.append(
                {
                    "image": image_id,
                    "classes": classes.tolist(),
                    "lost": [],
                    "notes": [],
                    "seconds": seconds,
                    "cells": cells.tolist(),
                }
            )
    return ids


def sum_up(folder: Path, images: int) -> dict[str, float]:
    """Processor seconds by part, and the peak memory of the process."""
    before = peak()
    ids = [f"ADE_val_{number:08d}" for number in range(images)]
    names = [[f"class {number}"] for number in range(CLASSES)]
    dataset: Any = SimpleNamespace(class_names=names, ids=ids, found=None)
    config: Any = DatasetConfig(**{"name": "ade20k", "reader": "ade20k", "root": "."}, thresholds=tuple(THRESHOLDS))
    spent, start = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal start
        now = time.process_time()
        spent[name], start = now - start, now

    with RunStore(folder, SETTINGS) as store:
        run = CountedRun(store, metric(), ids)
        run.keep_thumbnails(0.0, [name for (name,) in names])
        count_images(dataset, ids, [run], lambda: sys.exit("nothing is left to count"))
        lap("opening and reading")
        total = metric()
        records = collect(ids, total, store)
        assert records is not None
        lap("collecting")
        results = summarise(
            dataset, config, Protocol(), total, records, fixed=0.0, settings={}, origins=store.origins()
        )
        lap("summing up and bootstrap")
        write_results(store, results)
        lap("writing and report")
    return {**spent, "cpu seconds": sum(spent.values()), "bytes": peak(), "bytes before": before}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    arguments = parser.parse_args(argv)
    if arguments.folder:
        print(json.dumps(sum_up(arguments.folder, arguments.images)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        make_folder(folder, arguments.images)
        size = sum(file.stat().st_size for file in folder.glob("*.jsonl"))
        command = [sys.executable, __file__, "--folder", str(folder), "--images", str(arguments.images)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said)
    print(f"{arguments.images} images, {CLASSES} classes, {len(THRESHOLDS)} thresholds, {size / 1e6:.0f} MB of counts")
    print("| part | CPU seconds |\n|---|---|")
    for name in (name for name in found if not name.startswith("bytes")):
        print(f"| {'all' if name == 'cpu seconds' else name} | {found[name]:.2f} |")
    print(f"goal: {GOAL['cpu seconds']:.0f} s; peak memory {found['bytes'] / 1e6:.0f} MB, of which the modules take")
    print(f"{found['bytes before'] / 1e6:.0f} MB; goal: {GOAL['bytes'] / 1e6:.0f} MB")
    if arguments.json:
        write_text(arguments.json, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
