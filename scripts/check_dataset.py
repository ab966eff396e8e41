"""Check a data set's folder before a run: what is there, what is missing or wrong, and how to fix it.

    python3 scripts/check_dataset.py dataset=voc dataset.root=/data/VOCdevkit/VOC2012
    python3 scripts/check_dataset.py dataset=coco-stuff dataset.root=/data/coco dataset.split=clean limit=100

Opens every image and label. Ends with "ready", or with the fixes and exit status 1. The keys are those of
src-main/main.py (configs/config.yaml); docs/datasets.md shows how each folder should look.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import hydra
from goca.cli.hydra_command import check_arguments, plain_errors, resolved
from goca.datasets import Dataset, DatasetConfig, DatasetError, class_labels, load_dataset
from goca.datasets.check import Report, examine
from goca.schema import ConfigError, Count, refusal
from omegaconf import DictConfig
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 10  # images that are listed per problem


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(config: DictConfig) -> None:
    try:
        values = resolved(config)
        if wrong := refusal(Count | None, values["limit"], "limit"):
            raise ConfigError(wrong)
        ready = check(DatasetConfig.of(values["dataset"]), values["limit"])
    except (DatasetError, ConfigError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}\nnot ready")
    sys.exit(0 if ready else 1)


def check(config: DatasetConfig, limit: int | None = None) -> bool:
    """Check the data set and print the result; return whether it is ready."""
    dataset = load_dataset(config)
    report = examine(dataset, config, limit, partial(tqdm, desc=config.name, unit="image"))
    for line in described(dataset, config, report):
        print(line)
    return report.ready


def described(dataset: Dataset, config: DatasetConfig, report: Report) -> list[str]:
    """Yield the lines of a report."""
    wanted = f"; expected: {' or '.join(map(str, report.expected))}" if report.expected else ""
    lines = [f"{config.name}: {report.listed} images in {config.listed} (split {config.split}){wanted}"]
    if found := getattr(dataset, "found", None):
        lines.append(f"labels: {found}")
    names = class_labels(dataset.class_names)[1:]
    absent = [names[class_id - 1] for class_id in range(1, len(names) + 1) if class_id not in report.classes]
    lines.append(f"classes: {len(report.classes)} of {len(names)} occur; {report.void:.1%} of the pixels unlabelled")
    if absent and report.classes:
        lines.append(f"  without an image: {', '.join(absent[:SHOWN])}{', ...' * (len(absent) > SHOWN)}")
    for kind, images in report.found.items():
        lines.append(f"{len(images)} with {kind}:")
        lines += [f"  {image}" for image in images[:SHOWN]]
        lines += [f"  and {len(images) - SHOWN} more"] * (len(images) > SHOWN)
    return [*lines, *captions(config), *verdict(report)]


def captions(config: DatasetConfig) -> list[str]:
    """Return a line on the captions, which a run needs as well."""
    if config.labels and not any(path.is_file() for path in (Path(config.labels), ROOT / config.labels)):
        return [f"captions: {config.labels} does not exist yet; gpt_output/README.md says how to obtain it"]
    return []


def verdict(report: Report) -> list[str]:
    """Return "ready", or the fixes."""
    if report.ready and report.looked_at < report.listed:
        return [f"ready, judging by the first {report.looked_at} images"]
    return ["ready"] if report.ready else ["not ready:", *(f"  {step}" for step in report.fixes())]


if __name__ == "__main__":
    with plain_errors():
        check_arguments(sys.argv[1:])
        main()
