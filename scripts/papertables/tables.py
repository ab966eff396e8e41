"""Tables of runs: the rows of a table in configs/tables, and the result of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from goca.config import RULES
from goca.evaluation.decision import BACKGROUND_RULES
from goca.protocol import SWITCHES

RULES_OF = {**{f"model.{name}": rules for name, rules in RULES.items()}, "dataset.background": BACKGROUND_RULES}
NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One row: labels, the overrides of its run (None: not a run of this project), and published mIoU in %."""

    labels: tuple[str, ...]
    overrides: tuple[str, ...] | None
    figure: float | None = None
    rerun: float | None = None


@dataclass(frozen=True)
class Cell:
    """One run's mIoU in %: at the best threshold with a 95 % bootstrap interval, and at the fixed threshold."""

    best: float
    threshold: float
    interval: tuple[float, float] | None
    fixed: float
    fixed_threshold: float
    images: int
    listed: int
    run_dir: str
    pipeline: str
    auc: float | None = None

    @classmethod
    def of(cls, results: Mapping[str, Any], run_dir: str) -> Cell:
        best, fixed = results["mIoU"]["best"], results["mIoU"]["fixed"]
        around = results.get("metrics", {}).get("best", {}).get("mIoU", {}).get("interval")
        images, config = results["images"], results["config"]
        auc = results.get("presence", {}).get("auc", {}).get("value")
        percent = [float("nan") if each["mIoU"] is None else 100 * each["mIoU"] for each in (best, fixed)]
        return cls(
            percent[0],
            best["threshold"],
            (100 * around[0], 100 * around[1]) if around else None,
            percent[1],
            fixed["threshold"],
            images["counted"],
            images["listed"],
            run_dir,
            config["model"]["pipeline"],
            None if auc is None else 100 * auc,
        )

    def __str__(self) -> str:
        if not self.images:
            return "no image counted"
        around = f" [{self.interval[0]:.1f}, {self.interval[1]:.1f}]" if self.interval else ""
        presence = "" if self.auc is None else f"; AUC {self.auc:.1f}"
        return f"{self.best:.1f}{around} at {self.threshold:g}; {self.fixed:.1f}{presence}"


@dataclass(frozen=True)
class Table:
    """Rows x columns of runs.

    definition  a file of configs/tables
    given       overrides from the command line, for every run
    cells       (row, column) -> result of its run
    """

    definition: Mapping[str, Any]
    rows: tuple[Row, ...]
    given: tuple[str, ...]
    cells: dict[tuple[Row, str], Cell] = field(default_factory=dict)

    @classmethod
    def of(cls, definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Table:
        rows = dict.fromkeys(BUILDERS[definition["build"]](definition, given, grid))
        return cls(definition, tuple(rows), tuple(given))

    def runs(self) -> Iterator[tuple[tuple[Row, str], list[str]]]:
        """The overrides of each cell's run; later ones take precedence."""
        for row, (column, overrides) in product(self.rows, self.definition["columns"].items()):
            chosen_by = CHOSEN_BY_ROWS.get(self.definition["build"], ())
            own = [each for each in self.given if choice(each) not in chosen_by]
            if row.overrides is not None:
                yield (row, column), [*own, *overrides, *row.overrides]

    @property
    def heads(self) -> list[str]:
        named = {"paper": self.definition.get("published", "paper")}
        others = [named.get(name, name) for name, known in self.others().items() if known]
        return [*self.definition["labels"], *others, *(f"ours: {column}" for column in self.definition["columns"])]

    def lines(self) -> list[list[str]]:
        columns, others = list(self.definition["columns"]), self.others()
        return [
            [
                *row.labels,
                *(shown(getattr(row, name)) for name in FOUND.values() if others[TITLES[name]]),
                *(
                    str(self.cells.get((row, column), NOT_RUN if row.overrides is not None else ""))
                    for column in columns
                ),
            ]
            for row in self.rows
        ]

    def others(self) -> dict[str, bool]:
        """Whether each column of published figures holds any: title -> True or False."""
        return {title: any(getattr(row, name) is not None for row in self.rows) for title, name in FOUND.items()}


CHOSEN_BY_ROWS = {
    "main": ("model", "dataset"),
    "open": ("dataset", "words"),
}  # groups that rows set
FOUND = {"paper": "figure", "rerun": "rerun"}  # title of a column -> field of Row
TITLES = {name: title for title, name in FOUND.items()}


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def choice(override: str) -> str:
    return override.split("=")[0]


def chosen(given: Sequence[str], group: str, default: str) -> list[str]:
    """The values given for a group, separated by commas."""
    values = [each.split("=", 1)[1] for each in given if choice(each) == group]
    return (values[-1] if values else default).split(",")


# --- which rows a table has ----------------------------------------------------------------------------------------


def main_rows(definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Iterator[Row]:
    """Methods x data sets; `model=` and `dataset=` select some of them."""
    known = [*definition["datasets"], "scenes"]
    datasets = chosen(given, "dataset", ",".join(known))
    models = chosen(given, "model", ",".join(row["labels"][1] for row in definition["rows"]))
    rows = [row for row in definition["rows"] if row["labels"][1] in models]
    for row, dataset in product(rows, known):
        if dataset in row.get("datasets", definition["datasets"]) and dataset in datasets:
            found = (row.get(name, {}).get(dataset) for name in ("figures", "reruns"))
            yield Row((*row["labels"], dataset), (f"dataset={dataset}", *row["overrides"]), *found)


def ablation_rows(definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Iterator[Row]:
    """Rows with parts switched on and off, then with one rule changed at a time; or every combination of rules."""
    model, dataset = chosen(given, "model", "mini-sd")[0], chosen(given, "dataset", "scenes")[0]
    figures, reruns = (definition[name].get(dataset, {}).get(model, {}) for name in ("figures", "reruns"))
    parts, alone = definition["parts"], definition["alone"]
    if grid == "full":
        for rules in product(*(RULES_OF[alone[part]] for part in parts)):
            yield Row(tuple(rules), tuple(f"{alone[part]}={rule}" for part, rule in zip(parts, rules)))
        return
    for on in sorted(product((False, True), repeat=len(parts)), key=sum):
        labels = tuple("ours" if each else "vanilla" for each in on)
        overrides = tuple(each for is_on, own in zip(on, parts.values()) if not is_on for each in own)
        yield Row(labels, overrides, figures.get(", ".join(labels)), reruns.get(", ".join(labels)))
        if not any(on) and (manual := definition["manual"].get(model)):
            labels = tuple(manual["labels"])
            yield Row(labels, tuple(manual["overrides"]), figures.get(", ".join(labels)))
    for part, key in alone.items():
        for rule in RULES_OF[key]:
            named = tuple(rule if each == part else "ours" for each in parts)
            labels = named if part in parts else (*named[:-1], f"ours; {part}: {rule}")
            yield Row(labels, (f"{key}={rule}",))


def switch_rows(definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Iterator[Row]:
    """Each preset, then each switch at the other preset's value; `released` with seeded noise, except for `seed`."""
    for preset, kept, values in (("paper", (), 1), ("released", ("protocol.seed=image",), 0)):
        base = (f"protocol={preset}", *kept)
        yield Row((preset, "as it is" + "".join(f", {each.removeprefix('protocol.')}" for each in kept)), base)
        for switch, pair in SWITCHES.items():
            value = "none" if switch == "seed" else pair[values]
            quoted = f"'{value}'" if value == "nan" else value  # Hydra reads a bare nan as a number
            yield Row((preset, f"{switch}: {value}"), (*base, f"protocol.{switch}={quoted}"))


def timestep_rows(definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Iterator[Row]:
    """A row per timestep; `timesteps=20,50` chooses others."""
    own = chosen(given, "timesteps", ",".join(map(str, definition["timesteps"])))
    yield from (Row((t,), (f"model.t={t}",)) for t in own)


def open_rows(definition: Mapping[str, Any], given: Sequence[str], grid: str) -> Iterator[Row]:
    """Published figures of other systems per data set, and ours by the source of the words.

    `dataset=` and `words=` choose among them, `model=` replaces the data set's own.
    """
    datasets, model = definition["datasets"], chosen(given, "model", "")[0]
    known = definition["ours"]
    ours = {words: known.get(words, words) for words in chosen(given, "words", ",".join(known))}
    for dataset in chosen(given, "dataset", ",".join(datasets)):
        for other in definition["others"]:
            if dataset in other["figures"]:
                yield Row((other["system"], other["told"], dataset), None, other["figures"][dataset])
        for words, told in ours.items():
            own = [each for each in datasets.get(dataset, ()) if not (model and choice(each) == "model")]
            yield Row(("ours", told, dataset), (f"dataset={dataset}", f"words={words}", *own))


BUILDERS = {
    "main": main_rows,
    "ablation": ablation_rows,
    "switches": switch_rows,
    "timesteps": timestep_rows,
    "open": open_rows,
}
