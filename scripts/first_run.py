"""A first run with published weights: five images, both methods, and a report that can be attached to an issue.

    python3 scripts/first_run.py model=sdxl dataset=voc dataset.root=/data/VOCdevkit/VOC2012
    python3 scripts/first_run.py model=mini-sd dataset=scenes

Arguments are those of src-main/main.py; `limit` (default 5) sets the number of images. Both runs follow the released
evaluation, but seeded, and without classes that no image shows in the mean. The report, run_dir/report.md, lists
machine, model, versions, time and memory, and the mIoU with its (wide) interval for so few images.
"""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goca.cli.hydra_command import check_arguments, plain_errors
from goca.cli.overrides import configured
from goca.config import names
from goca.config_folder import config_folder
from goca.files.atomic import write_text
from goca.files.text import read_yaml
from tqdm import tqdm

OWN = ["limit=5", "protocol=released", "protocol.seed=image", "protocol.absent_classes=skip"]  # unless given
BASES = {"sd15-baseline": "sd15-vanilla", "fttm": "sd15-vanilla", "diffsegmentor": "sd15-vanilla"}
PRIVATE = ("dataset.root", "dataset.labels", "run_dir", "annotations", "noise_file", "model.pipeline", "model.denoiser")
GB = 1e9


@dataclass
class Found:
    """The result of one method's run."""

    title: str
    model: str
    results: dict[str, Any] = field(default_factory=dict)
    loading: float = 0.0  # seconds
    images: list[float] = field(default_factory=list)  # seconds per image; the first is a warm-up

    def row(self, figure: float | None) -> list[str]:
        best = self.results["mIoU"]["best"]
        around = self.results["metrics"]["best"]["mIoU"].get("interval")
        interval = f"{100 * around[0]:.1f} to {100 * around[1]:.1f}" if around else "-"
        later = self.images[1:] or self.images
        seconds = f"{sum(later) / len(later):.1f}" if later else "counted before"
        mean = "-" if best["mIoU"] is None else f"{100 * best['mIoU']:.1f} at {best['threshold']:g}"
        return [self.title, self.model, f"{self.loading:.1f}", seconds, mean, interval, shown(figure)]


def main(arguments: Sequence[str]) -> int:
    given = [*OWN, *arguments]
    check_arguments(given)
    values = configured(given)
    out = Path(named(arguments, "run_dir") or f"runs/first/{values['choices']['model']}-{values['choices']['dataset']}")
    lines, failure = [*head(values, arguments)], ""
    founds: list[Found] = []
    try:
        for title, model in methods(values["choices"]["model"]).items():
            print(f"== {title}: model={model} dataset={values['choices']['dataset']}", flush=True)
            rest = [each for each in given if each.split("=")[0] not in ("model", "run_dir")]
            founds.append(measured(title, model, [*rest, f"model={model}", f"run_dir={out / model}"]))
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        lines += ["", f"**It failed**: {failure}", "", "```", *traceback.format_exc().splitlines()[-8:], "```"]
        raise
    finally:
        lines += body(founds, values["choices"]["dataset"])
        write_text(out / "report.md", "\n".join(lines) + "\n")
        print("\n".join(lines))
        print(f"\nreport: {out / 'report.md'}", file=sys.stderr)
    return 0


def methods(model: str) -> dict[str, str]:
    """The model's vanilla config and its own, if these differ."""
    vanilla = BASES.get(model, model if model.endswith("-vanilla") else f"{model}-vanilla")
    return ({"vanilla": vanilla} if vanilla in names() and vanilla != model else {}) | {"GoCA": model}


def measured(title: str, model: str, overrides: Sequence[str]) -> Found:
    """Run the benchmark, timing the loading and each image."""
    from goca.benchmark import Benchmark

    found, start = Found(title, model), time.perf_counter()

    class Timed(Benchmark):
        def load(self, *given: Any) -> Any:
            begun = time.perf_counter()
            segmenter = super().load(*given)
            found.loading = time.perf_counter() - begun
            return segmenter

    def progress(ids: list[str]) -> Iterable[str]:
        return laps(tqdm(ids, desc=title, unit="image", disable=None), found)

    found.results = Timed.of(configured(overrides)).run(progress=progress) or {}
    print(f"{title}: {time.perf_counter() - start:.1f} s in total", flush=True)
    return found


def laps(images: Iterable[str], found: Found) -> Iterator[str]:
    """Record the time of each image, without loading."""
    for image in images:
        start, loaded = time.perf_counter(), found.loading
        yield image
        found.images.append(time.perf_counter() - start - (found.loading - loaded))


# ---- the report


def head(values: dict[str, Any], arguments: Sequence[str]) -> Iterator[str]:
    """The command and the machine, without local paths."""
    from goca.cli import machine

    place = machine.memory(values["device"])
    model = values["model"]
    said = [each if each.split("=")[0] not in PRIVATE else f"{each.split('=')[0]}=..." for each in arguments]
    yield f"# First run: {values['choices']['model']} on {values['choices']['dataset']}"
    yield ""
    yield f"`first_run.sh {' '.join(said)}`"
    yield ""
    second = f", denoiser {place_name(model['denoiser'])}" if model["denoiser"] else ""
    yield f"* pipeline {place_name(model['pipeline'])}{second}; dtype {values['dtype']}, variant {values['variant']}"
    yield f"* {machine.device_line(place).found}; bfloat16: {machine.precision_line(place, values['dtype']).found}"
    yield f"* {', '.join(f'{line.what} {line.found.split()[0]}' for line in machine.versions())}"


def place_name(location: str) -> str:
    """A hub id, or the last part of a folder's path."""
    return f"the folder {Path(location).name}" if Path(location).is_dir() else location


def body(founds: Sequence[Found], dataset: str) -> Iterator[str]:
    done = [found for found in founds if found.results]
    if not done:
        return
    yield ""
    yield "| method | model | loading, s | an image, s | mIoU, % | 95 % interval | paper, all images |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for found in done:
        yield f"| {' | '.join(found.row(figure(found.model, dataset)))} |"
    images = done[-1].results["images"]
    yield ""
    yield f"{images['counted']} of {images['listed']} images of the list; {held()}."
    yield from (f"Skipped: {image}" for image in images["skipped"])
    for found in done:
        figures = figure(found.model, dataset)
        around = found.results["metrics"]["best"]["mIoU"].get("interval")
        if figures is not None and around:
            inside = 100 * around[0] <= figures <= 100 * around[1]
            yield f"{found.title}: the paper's {figures:g} lies {'inside' if inside else 'outside'} the interval."
    yield "So few images show few classes: these figures can only reveal gross errors."


def figure(model: str, dataset: str) -> float | None:
    """The paper's mIoU in %, from configs/tables/main.yaml."""
    rows = read_yaml(config_folder() / "tables" / "main.yaml")["rows"]
    own = (row.get("figures", {}) for row in rows if row["overrides"] == [f"model={model}"])
    return next((found[dataset] for found in own if dataset in found), None)


def shown(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"


def held() -> str:
    """The peak memory of the accelerator, or else of the process."""
    import torch

    if torch.cuda.is_available():
        return f"at most {torch.cuda.max_memory_allocated() / GB:.1f} GB on the accelerator"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB:.1f} GB in the process"


def named(arguments: Sequence[str], key: str) -> str | None:
    return next((each.split("=", 1)[1] for each in arguments if each.split("=")[0] == key), None)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    with plain_errors("the same command resumes where it stopped"):
        sys.exit(main(sys.argv[1:]))
