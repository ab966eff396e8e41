"""Segment a benchmark and score it.

    python3 src-main/main.py model=sd15 dataset=voc dataset.root=/data/VOCdevkit/VOC2012
    python3 src-main/main.py -m model=mini-sd,mini-sd-vanilla dataset=scenes protocol=paper,released
    python3 src-main/main.py --config-name sweep roots.voc=/data/VOCdevkit/VOC2012 dataset=voc hydra/launcher=slurm
    accelerate launch src-main/main.py model=sd15 dataset=voc dataset.root=/data/VOCdevkit/VOC2012

Run the same command again to resume. configs/config.yaml lists every key; docs/runs.md explains runs on several
processes, machines and clusters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from goca.benchmark.settings import GROUPS
from goca.cli.hydra_command import check_arguments, interruptible, plain_errors, resolved
from goca.cli.overrides import completed
from goca.report.results import table
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

KEPT = "counted images are kept; run the same command again to resume"


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    choices = {group: job.runtime.choices[group] for group in GROUPS}
    with plain_errors(KEPT):
        evaluate(completed(resolved(config), choices, job.overrides.task))


def evaluate(values: dict[str, Any]) -> None:
    from goca.benchmark import Benchmark  # only now: a misspelt choice is answered before torch is loaded
    from goca.benchmark.checks import NothingCounted

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = "{model} on {dataset}".format(**values["choices"])
    bar = partial(tqdm, desc=name, unit="image", disable=rank > 0)
    benchmark = Benchmark.of(values)
    try:
        results = benchmark.run(rank=rank, world=world, progress=lambda ids: interruptible(bar(ids)))
    except NothingCounted as error:
        report(error.runs[benchmark.run_dir], values["run_dir"])
        raise
    if results is None:
        print(f"Process {rank} has counted its images; the last process, or another run, writes the results.")
        return
    report(results, values["run_dir"])
    if values["strict"] and results["images"]["skipped"]:
        sys.exit(f"strict=true, and {len(results['images']['skipped'])} images were skipped")


def report(results: Mapping[str, Any], run_dir: str) -> None:
    """The closing table under the run's name: a sweep prints several."""
    print(f"\n{Path(run_dir).name}\n{table(results)}\nresults: {run_dir}")


if __name__ == "__main__":
    with plain_errors(KEPT):
        check_arguments(sys.argv[1:])
        main()
