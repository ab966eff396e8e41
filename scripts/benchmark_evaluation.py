"""Measure the evaluation of one image on one core, and a plain loop: one argmax over all classes per threshold.

    python3 scripts/benchmark_evaluation.py                     151 classes, 9 thresholds, 375 x 500, 5 to 15 present
    python3 scripts/benchmark_evaluation.py --present 3 --size 512 512 --json FILE

Score maps are random numbers on a 64 x 64 grid. The command fails if the two give different counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from goca.evaluation import MeanIoU
from goca.files.atomic import write_text
from tqdm import tqdm

GRID, VOID = 64, 255
THRESHOLDS = [t / 10 for t in range(-4, 5)]


def example(classes: int, present: int, size: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Scores [present + 1, 64, 64], a label map [H, W] with some void, and the class ids."""
    rng = np.random.default_rng(seed)
    class_ids = sorted(rng.choice(np.arange(1, classes), present, replace=False).tolist())
    scores = rng.random((present + 1, GRID, GRID), dtype=np.float32)
    values = np.array([0, *class_ids, VOID], np.uint8 if classes <= VOID else np.uint16)
    return scores, values[rng.integers(0, len(values), size)], class_ids


def plain_loop(scores: np.ndarray, label: np.ndarray, class_ids: Sequence[int], classes: int) -> np.ndarray:
    """Intersection and union [2, thresholds, classes], one argmax over all classes per threshold."""
    maps = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], label.shape, mode="bilinear")[0]
    kept = label != VOID
    counts = np.zeros((2, len(THRESHOLDS), classes), np.int64)
    for row, threshold in enumerate(THRESHOLDS):
        full = torch.zeros(classes, *label.shape)
        full[list(class_ids)] = maps[:-1]
        full[0] = maps[-1] + threshold
        predicted = full.argmax(dim=0).numpy()[kept]
        truth = label[kept]
        counts[0, row] = np.bincount(truth[predicted == truth], minlength=classes)
        counts[1, row] = np.bincount(truth, minlength=classes) + np.bincount(predicted, minlength=classes)
    counts[1] -= counts[0]
    return counts


@contextmanager
def one_core() -> Iterator[None]:
    """Limit this process to one core, if the system supports it, and torch to one thread."""
    threads, cores = torch.get_num_threads(), getattr(os, "sched_getaffinity", lambda _: set())(0)
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median processor time of a call after a warm-up call; other load hardly influences it."""
    spent = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent[1:])


def measure(classes: int, present: int, size: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds per image of both. Raises SystemExit if their counts differ."""
    scores, label, class_ids = example(classes, present, size)
    metric = MeanIoU(classes, "offset", THRESHOLDS, ignore_index=VOID)
    metric.update(scores, label, class_ids)
    if not np.array_equal(plain_loop(scores, label, class_ids, classes), [metric.intersection, metric.union]):
        raise SystemExit("CountsDiffer: one pass and the plain loop do not agree on this machine")
    one_pass = seconds(lambda: metric.update(scores, label, class_ids), repeats)
    plain = seconds(lambda: plain_loop(scores, label, class_ids, classes), max(1, repeats // 10))
    return {"present": present, "one pass": one_pass, "plain loop": plain, "ratio": plain / one_pass}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=151, help="classes of the data set, background included")
    parser.add_argument("--present", type=int, nargs="+", default=[5, 10, 15], help="classes with a map in the image")
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args(argv)
    with one_core():
        rows = [
            measure(arguments.classes, present, arguments.size, arguments.repeats)
            for present in tqdm(arguments.present, desc="classes present")
        ]
    height, width = arguments.size
    print(f"{arguments.classes} classes, {len(THRESHOLDS)} thresholds, {height} x {width}, one core;", end=" ")
    print("medians of processor time")
    print("| classes present | one pass | plain loop | ratio |\n|---|---|---|---|")
    for row in rows:
        times = f"{1e3 * row['one pass']:.1f} ms | {1e3 * row['plain loop']:.0f} ms"
        print(f"| {row['present']} | {times} | {row['ratio']:.0f} |")
    if arguments.json:
        found = {"classes": arguments.classes, "size": arguments.size, "rows": rows}
        write_text(arguments.json, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
