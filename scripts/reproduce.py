"""Run, or collect, what a table of the paper takes, and write it beside the paper's figures.

    python3 scripts/reproduce.py table=ablation dataset=scenes                      the embedded model: minutes
    python3 scripts/reproduce.py table=switches dataset=scenes
    python3 scripts/reproduce.py table=ablation model=sd15 dataset=voc dataset.root=/data/VOCdevkit/VOC2012
    python3 scripts/reproduce.py table=main model=sd15,flux roots.voc=/data/VOCdevkit/VOC2012 pipelines.flux=/data/flux
    python3 scripts/reproduce.py table=open dataset=scenes words=vocabulary,caption,present
    python3 scripts/reproduce.py table=timesteps model=mini-sd dataset=scenes timesteps=50,100,200
    python3 scripts/reproduce.py table=generation runs=runs/generation              what evaluate.py has scored

Own arguments; all others are those of src-main/main.py and hold for every run:
    table=main|open|ablation|switches|timesteps|generation    a file of configs/tables
    grid=default|full               ablation: full is every combination of rules (280)
    timesteps=20,50,...             timesteps: other ones than the file's
    run=true|false                  false: only collect finished runs
    runs=runs                       where finished runs are looked for, besides their own folders
    roots.DATASET=, pipelines.MODEL=    main: where a data set or a model lies
    format=markdown|csv|latex       what is printed; all three are written
    out=runs/tables/NAME            their names, without suffix

Runs that share a forward are made together (goca.benchmark.sweep); each has the folder that main.py would give it, so
one resumes what the other has counted. With RANK and WORLD_SIZE, images are dealt out as by main.py. What has not
been run, or has no data, says "not run".
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from goca.benchmark import Benchmark
from goca.benchmark.sweep import run_together
from goca.cli import INTERRUPTED
from goca.cli.overrides import configured
from goca.config import folder
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
KINDS = ("vanilla", "plus", "baseline")  # configs NAME-KIND run on the pipeline of NAME
BASED = {"diffsegmentor": "sd15", "fttm": "sd15", "mini-sd-diffsegmentor": "mini-sd"}  # so do these


class ArgumentError(GocaError, ValueError):
    """An argument of this command that is not known, or lacks its value."""


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
    if own["run"] == "true":
        wanted = [benchmark for benchmark in benchmarks.values() if benchmark.dataset.root]
        run_together(wanted, rank=rank, world=world, progress=bars(rank))
    if rank > 0:
        return
    table.cells.update(collected(benchmarks, Path(own["runs"])))
    write(own, written(table), name_of(own, table))


def write(own: Mapping[str, str], texts: Mapping[str, str], name: str) -> None:
    """A table in every form, suffix -> text, to its files; in the chosen one to the screen."""
    out = own["out"] or f"runs/tables/{name}"
    for suffix, text in texts.items():
        write_text(Path(f"{out}.{suffix}"), text)
    print(texts[FORMATS[own["format"]]])
    print(f"tables: {out}.{{{','.join(texts)}}}", file=sys.stderr)


def read_arguments(arguments: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """This command's own arguments, and those of every run. Raises ArgumentError."""
    own, given = dict(OWN), []
    for each in arguments:
        key, equals, value = each.partition("=")
        if not equals:
            raise ArgumentError(f"{each!r} is no argument; expected key=value (python3 scripts/reproduce.py --help)")
        if key in ALLOWED and value not in ALLOWED[key]:
            raise ArgumentError(f"{each}: {key} can be one of: {', '.join(ALLOWED[key])}")
        if key == "run_dir":
            raise ArgumentError(f"{each}: a table is many runs; each has a folder of its own, under runs/")
        if key in own:
            own[key] = value
        else:
            given.append(each)
    return own, given


def definition(name: str) -> dict[str, Any]:
    """A file of configs/tables. Raises ArgumentError."""
    files = {file.stem: file for file in (folder().parent / "tables").glob("*.yaml")}
    if name not in files:
        raise ArgumentError(f"table={name} is not known; there are: {', '.join(sorted(files))}")
    return read_yaml(files[name])


def located(overrides: list[str], given: list[str]) -> list[str]:
    """With the places of the run's data set and model: roots.voc=... and pipelines.sd15=..."""
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
    """What finished runs found: in the run's own folder, else in any below `runs` that was set to the same."""
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    own = {benchmark.run_dir for benchmark in benchmarks.values()}
    files = {*runs.rglob("results.json"), *(path / "results.json" for path in own)}
    for file in sorted((file for file in files if file.is_file()), key=lambda file: (file.parent in own, file)):
        try:
            results = read_json(file)
            known[identity(Benchmark.of(results["config"]))] = file.parent, results
        except (ValueError, KeyError, TypeError):  # of another version, or no run's
            continue
    found = {place: known.get(identity(benchmark)) for place, benchmark in benchmarks.items()}
    return {place: Cell.of(run[1], str(run[0])) for place, run in found.items() if run is not None}


def identity(benchmark: Benchmark) -> str:
    """What makes two runs the same line of a table: everything but where model and data lie and what they run on."""
    model, dataset = benchmark.model.to_dict(), dict(vars(benchmark.dataset))
    for name in ("root", "labels"):
        del dataset[name]
    del model["pipeline"], model["denoiser"]
    task, of = type(benchmark).__name__, ("seed", "limit", "fixed_threshold", "noise_file", "ask", "words", "tagger")
    return json.dumps([task, model, dataset, [getattr(benchmark, name) for name in of]], sort_keys=True, default=str)


def name_of(own: Mapping[str, str], table: Table) -> str:
    """The table and what was chosen for it."""
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
        print("interrupted; what is counted is kept, give the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
