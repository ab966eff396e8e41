"""Run or collect the benchmarks of one of the paper's tables, and write the table next to the paper's figures.

    python3 scripts/reproduce.py table=ablation dataset=scenes                      the embedded model: minutes
    python3 scripts/reproduce.py table=switches dataset=scenes
    python3 scripts/reproduce.py table=ablation model=sd15 dataset=voc dataset.root=/data/VOCdevkit/VOC2012
    python3 scripts/reproduce.py table=main model=sd15,flux roots.voc=/data/VOCdevkit/VOC2012 pipelines.flux=/data/flux
    python3 scripts/reproduce.py table=open dataset=scenes words=vocabulary,caption,present
    python3 scripts/reproduce.py table=timesteps model=mini-sd dataset=scenes timesteps=50,100,200
    python3 scripts/reproduce.py table=generation runs=runs/generation              scores of evaluate.py

Own arguments; all others are those of src-main/main.py and hold for every run:
    table=main|open|ablation|switches|timesteps|generation    a file of configs/tables
    grid=default|full               ablation: full is every combination of rules (280)
    timesteps=20,50,...             timesteps: instead of those in the file
    run=true|false                  false: only collect finished runs
    runs=runs                       further folder with finished runs
    roots.DATASET=, pipelines.MODEL=    main: folder of a data set or a model
    format=markdown|csv|latex       format that is printed; all three are written
    out=runs/tables/NAME            path of the written files, without suffix

Runs that need the same forward pass are evaluated together (goca.benchmark.sweep). Each run has the folder that main.py
would give it, so both commands resume each other's runs. RANK and WORLD_SIZE split the images as in main.py. Runs that
are missing or have no data are listed as "not run".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goca.benchmark import Benchmark
from goca.benchmark.checks import NothingCounted
from goca.benchmark.sweep import run_together
from goca.cli import INTERRUPTED
from goca.cli.overrides import configured
from goca.config_folder import config_folder
from goca.errors import GocaError, explained
from goca.files.atomic import write_text
from goca.files.bounded_json import read_json
from goca.files.text import read_yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from papertables.formats import FORMATS, written
from papertables.generation import generation_table
from papertables.tables import Cell, Row, Table, choice
from tqdm import tqdm

OWN = {"table": "", "grid": "default", "timesteps": "", "run": "true", "runs": "runs", "format": "markdown", "out": ""}
ALLOWED = {"grid": ("default", "full"), "run": ("true", "false"), "format": tuple(FORMATS)}
PLACES = ("roots", "pipelines")
KINDS = ("vanilla", "plus", "baseline")  # configs NAME-KIND use the pipeline of NAME
BASED = {"diffsegmentor": "sd15", "fttm": "sd15", "mini-sd-diffsegmentor": "mini-sd"}  # so do these


class ArgumentError(GocaError, ValueError):
    """An unknown argument, or one without a value."""


def main(arguments: list[str]) -> None:
    own, given = read_arguments(arguments)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = definition(own["table"])
    if found["build"] == "generation":
        write(own, generation_table(found, Path(own["runs"])), own["table"])
        return
    if own["timesteps"]:
        found["timesteps"] = own["timesteps"].split(",")
    table = Table.of(found, [each for each in given if choice(each).split(".")[0] not in PLACES], own["grid"])
    benchmarks = {place: Benchmark.of(configured(located(overrides, given))) for place, overrides in table.runs()}
    empty = None
    if own["run"] == "true":
        wanted = [benchmark for benchmark in benchmarks.values() if benchmark.dataset.root]
        empty = finished(wanted, rank, world)
    if rank == 0:
        table.cells.update(collected(benchmarks, Path(own["runs"])))
        write(own, written(table), name_of(own, table))
    if empty is not None:
        raise empty


def finished(benchmarks: Sequence[Benchmark], rank: int, world: int) -> NothingCounted | None:
    """Run what is left; the error that names runs in which every image was skipped, if there are any."""
    try:
        run_together(benchmarks, rank=rank, world=world, progress=bars(rank))
    except NothingCounted as error:
        return error
    return None


def write(own: Mapping[str, str], texts: Mapping[str, str], name: str) -> None:
    """Write a table in every format, suffix -> text, and print the chosen one."""
    out = own["out"] or f"runs/tables/{name}"
    for suffix, text in texts.items():
        write_text(Path(f"{out}.{suffix}"), text)
    print(texts[FORMATS[own["format"]]])
    print(f"tables: {out}.{{{','.join(texts)}}}", file=sys.stderr)


def read_arguments(arguments: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into this command's own and those of every run. Raises ArgumentError."""
    own, given = dict(OWN), []
    for each in arguments:
        key, equals, value = each.partition("=")
        if not equals:
            raise ArgumentError(f"{each!r} is no argument; expected key=value (python3 scripts/reproduce.py --help)")
        if key in ALLOWED and value not in ALLOWED[key]:
            raise ArgumentError(f"{each}: expected one of: {', '.join(ALLOWED[key])}")
        if key == "run_dir":
            raise ArgumentError(f"{each}: a table consists of many runs, each with its own folder under runs/")
        if key in own:
            own[key] = value
        else:
            given.append(each)
    return own, given


def definition(name: str) -> dict[str, Any]:
    """Read a file of configs/tables. Raises ArgumentError."""
    files = {file.stem: file for file in (config_folder() / "tables").glob("*.yaml")}
    if name not in files:
        raise ArgumentError(f"unknown table={name}; expected one of: {', '.join(sorted(files))}")
    return read_yaml(files[name])


def located(overrides: list[str], given: list[str]) -> list[str]:
    """Add the folders of the run's data set and model: roots.voc=... and pipelines.sd15=..."""
    places = dict(each.split("=", 1) for each in given if choice(each).split(".")[0] in PLACES)
    chosen = dict(each.split("=", 1) for each in overrides if choice(each) in ("model", "dataset"))
    found = [overrides]
    for group, key, field in (("dataset", "roots", "dataset.root"), ("model", "pipelines", "model.pipeline")):
        names = [name.split(".", 1)[1] for name in places if name.startswith(f"{key}.")]
        name = BASED.get(chosen.get(group, ""), chosen.get(group, ""))
        fits = [each for each in names if name in (each, *(f"{each}-{kind}" for kind in KINDS))]
        found += [[f"{field}={places[f'{key}.{each}']}"] for each in fits]
    return [each for part in found for each in part]


def bars(rank: int):
    def progress(name: str, ids: list[str]) -> Iterable[str]:
        return tqdm(ids, desc=name, unit="image", disable=rank > 0 or not ids)

    return progress


def collected(benchmarks: Mapping[tuple[Row, str], Benchmark], runs: Path) -> dict[tuple[Row, str], Cell]:
    """Read results from a run's own folder, or from any folder below `runs` with the same settings."""
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    own = {benchmark.run_dir for benchmark in benchmarks.values()}
    files = {*runs.rglob("results.json"), *(path / "results.json" for path in own)}
    for file in sorted((file for file in files if file.is_file()), key=lambda file: (file.parent in own, file)):
        try:
            results = read_json(file)
            known[identity(Benchmark.of(results["config"]))] = file.parent, results
        except (ValueError, KeyError, TypeError):  # of another version, or not of a run
            continue
    found = {place: known.get(identity(benchmark)) for place, benchmark in benchmarks.items()}
    return {place: Cell.of(run[1], str(run[0])) for place, run in found.items() if run is not None}


def identity(benchmark: Benchmark) -> str:
    """The settings that identify a cell of a table: all but paths and devices."""
    model, dataset = benchmark.model.to_dict(), dict(vars(benchmark.dataset))
    for name in ("root", "labels"):
        del dataset[name]
    del model["pipeline"], model["denoiser"]
    task, of = type(benchmark).__name__, ("seed", "limit", "fixed_threshold", "noise_file", "ask", "words", "tagger")
    return json.dumps([task, model, dataset, [getattr(benchmark, name) for name in of]], sort_keys=True, default=str)


def name_of(own: Mapping[str, str], table: Table) -> str:
    """Make the table from its file and the arguments."""
    chosen = [each.split("=", 1)[1] for each in table.given if choice(each) in ("model", "dataset")]
    grid = ["full"] if own["grid"] == "full" else []
    return "-".join([own["table"], *grid, *chosen]).replace("/", "_").replace(",", "+")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if not explained(error) and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("interrupted; counted images are kept, and the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
