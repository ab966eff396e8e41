"""Measure ask=open on drawn scenes: incomplete captions, absent and single words, presence.

    python3 scripts/study_open.py rules                  on the validation split: every rule for `rest` and presence
    python3 scripts/study_open.py table --seeds 4        the table of docs/open.md, on a separate split
    python3 scripts/study_open.py table --split fresh --seeds 1        on another split

Each image is counted once per noise seed. Counts are appended to a file in --work, and an interrupted run resumes. All
queries of an image, with GoCA and with vanilla (averages over heads and layers), share one forward pass; presence by
denoising needs another one for the prompts of present words. `open` has no threshold: its settings are the config's.
The table also shows the published method with the same words at the best of 17 thresholds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from goca.evaluation.presence import auc_of_scores
from goca.open.presence import PRESENCE_RULES
from goca.open.rest import REST_RULES
from openstudy.measures import METHODS, ROWS, SEEDS, WAYS, Study, metric
from study_scenes import THRESHOLDS, interval
from tqdm import tqdm


def records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each image once per noise seed; existing records in the file are kept."""
    file = arguments.work / f"open-{arguments.study}-{arguments.split}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    done = {(record["seed"], record["index"]) for record in found}
    with file.open("a") as out:
        for seed in range(arguments.seeds):
            left = [index for index in range(arguments.count) if (seed, index) not in done]
            published = seed == 0 and arguments.study == "table"
            study = Study(arguments.split, seed, arguments.study == "rules", published) if left else None
            for index in tqdm(left, desc=f"{arguments.split}, noise seed {seed}", unit="image"):
                found.append(study.look(index))
                out.write(json.dumps(found[-1]) + "\n")
                out.flush()
    return [each for each in found if each["index"] < arguments.count and each["seed"] < arguments.seeds]


def scored(found: list[dict[str, Any]], way: str, method: str, row: str, seed: int) -> float:
    """mIoU in per cent, at the best threshold if there are several; for single objects the mean over objects."""
    metrics = metric(THRESHOLDS if way == "published" else [0.0])
    for record in found:
        for *of, cells in record["counts"] if record["seed"] == seed else ():
            if of == [way, method, row]:
                metrics.add(cells)
    per_class = metrics.per_class()[:, 1:] if row == "single" else metrics.per_class()
    return 100 * float(np.nanmax(np.nanmean(per_class, 1)))


def auc(found: list[dict[str, Any]], way: str, method: str, row: str, seed: int, rule: str | None = None) -> float:
    """AUC of presence over all words of a row, or over the queries of single words."""
    rows = ("objects", "single", "absent") if row == "single" else (row,)
    said = [
        (score, there)
        for record in found
        if record["seed"] == seed
        for by, of, kind, words, truth, presence, raw in record["words"]
        if (by, of) == (way, method) and kind in rows and (row != "single" or len(words) == 1)
        for score, there in zip(raw[rule] if rule else presence, truth)
    ]
    return auc_of_scores(*([score for score, there in said if there == kind] for kind in (False, True)))


def print_table(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    seeds = range(arguments.seeds)

    def cell(values: list[float], digits: int = 1) -> str:
        mean, wide = interval(values)
        return f"{mean:.{digits}f}" + (f" ± {wide:.{digits}f}" if len(values) > 1 else "")

    columns = [f"{method}, {kind}" for method in METHODS for kind in ("published, best threshold", *WAYS.values())]
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row, name in ROWS.items():
        cells = []
        for method in METHODS:
            cells.append("" if row == "single" else f"{scored(found, 'published', method, row, 0):.1f}")
            cells += [cell([scored(found, way, method, row, seed) for seed in seeds]) for way in WAYS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for row in ("two absent", "all eight", "single"):
        cells = []
        for method in METHODS:
            cells += ["", *(cell([auc(found, way, method, row, seed) for seed in seeds], 3) for way in WAYS)]
        print(f"| presence, AUC: {ROWS[row] if row != 'single' else 'single words'} | " + " | ".join(cells) + " |")
    for way, rule in WAYS.items():
        print(f"\n{rule}")
        print_reliability(found, way)


def print_reliability(found: list[dict[str, Any]], way: str) -> None:
    """The share of present words by predicted presence, for absent, all eight and single words."""
    said = np.array(
        [
            (p, there)
            for record in found
            for by, of, row, words, truth, presence, _ in record["words"]
            if (by, of) == (way, "GoCA") and (row in ("two absent", "all eight") or len(words) == 1)
            for p, there in zip(presence, truth)
        ],
        float,
    )
    print("\n| presence | words | mean presence | present |\n|---|---|---|---|")
    for low in np.arange(0, 1, 0.1):
        own = said[(said[:, 0] >= low) & (said[:, 0] < low + 0.1 + (low > 0.85))]
        if len(own):
            print(f"| {low:.1f} to {low + 0.1:.1f} | {len(own)} | {own[:, 0].mean():.2f} | {own[:, 1].mean():.2f} |")


def print_rules(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    for method in METHODS:
        print(f"\n| {method}: rule for the rest | " + " | ".join(ROWS.values()) + " |\n|---|" + "---|" * len(ROWS))
        for rule in REST_RULES:
            cells = [f"{scored(found, rule, method, row, 0):.1f}" for row in ROWS]
            print(f"| {rule} | " + " | ".join(cells) + " |")
        print(f"\n| {method}: rule of presence, AUC | two absent | all eight | single |\n|---|---|---|---|")
        for rule in PRESENCE_RULES:
            cells = [f"{auc(found, 'open', method, row, 0, rule):.3f}" for row in ("two absent", "all eight", "single")]
            print(f"| {rule} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("rules", "table"))
    parser.add_argument("--split", choices=SEEDS, help="validation for rules, untouched for the table")
    parser.add_argument("--count", type=int, default=200, help="number of images (default: 200)")
    parser.add_argument("--seeds", type=int, default=1, help="noise seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of the counts")
    arguments = parser.parse_args()
    arguments.split = arguments.split or ("validation" if arguments.study == "rules" else "untouched")
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = records(arguments)
    (print_rules if arguments.study == "rules" else print_table)(found, arguments)


if __name__ == "__main__":
    main()
