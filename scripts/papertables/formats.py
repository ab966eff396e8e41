"""Tables as Markdown, CSV and LaTeX, with the notes below them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import product
from typing import Any

from papertables.tables import FOUND, NOT_RUN, Table, shown

FORMATS = {"markdown": "md", "csv": "csv", "latex": "tex"}  # name -> suffix
TOLD = "Present classes come from the ground truth; thresholds are swept on the evaluated split."
LATEX = str.maketrans({"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "~": r"\textasciitilde{}"})


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    text = "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])
    return f"{text}\n\n" + "\n".join(f"* {note}" for note in notes) + "\n"


def latex(heads: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    rows = [" & ".join(each.translate(LATEX) for each in line) + r" \\" for line in (heads, *lines)]
    below = "\n".join(f"% {note}" for note in notes)
    start = rf"\begin{{tabular}}{{{'l' * len(heads)}}}"
    return "\n".join([start, r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}", below, ""])


def written(table: Table) -> dict[str, str]:
    """Format the table: file suffix -> text."""
    content = table.heads, table.lines(), notes(table)
    return {"md": markdown(*content), "csv": comma_separated(table), "tex": latex(*content)}


def comma_separated(table: Table) -> str:
    """One line per run; figures in %, empty if missing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    own = (
        "mIoU_best",
        "threshold",
        "low",
        "high",
        "mIoU_fixed",
        "fixed_threshold",
        "images",
        "listed",
        "run_dir",
        "presence_auc",
    )
    writer.writerow([*table.definition["labels"], *FOUND, "column", *own])
    for row, column in product(table.rows, table.definition["columns"]):
        cell, found = table.cells.get((row, column)), [shown(getattr(row, name)) for name in FOUND.values()]
        values: list[Any] = [NOT_RUN] if row.overrides is not None else []
        if cell is not None:
            low, high = cell.interval or ("", "")
            values = [
                cell.best,
                cell.threshold,
                low,
                high,
                cell.fixed,
                cell.fixed_threshold,
                cell.images,
                cell.listed,
                cell.run_dir,
                "" if cell.auc is None else cell.auc,
            ]
        writer.writerow([*row.labels, *found, column, *(f"{v:.4f}" if isinstance(v, float) else v for v in values)])
    return out.getvalue()


def notes(table: Table) -> list[str]:
    """Notes below a table: the metrics, protocol and data."""
    found = [
        "Ours: mIoU in % at the best background threshold of the sweep [95 % bootstrap interval over images] at that "
        "threshold; then at the fixed threshold. " + table.definition.get("told", TOLD)
    ]
    if any(table.others().values()) and "published" not in table.definition:
        found.append(
            "paper: the paper's figures (arXiv 2603.06178), read from a published note on it; rerun: a third "
            "party's rerun of the released code."
        )
    named = table.definition["columns"].items()
    columns = [f"{name} = {' '.join(own) or 'the config as it is'}" for name, own in named]
    found.append(f"Columns: {'; '.join(columns)}. All runs: {' '.join(table.given) or 'no further argument'}.")
    images = sorted({f"{cell.images} of {cell.listed}" for cell in table.cells.values()})
    found += [f"Images counted: {', '.join(images)}."] if images else []
    pipelines = sorted({cell.pipeline for cell in table.cells.values()})
    found += [f"Pipelines: {', '.join(pipelines)}."] if pipelines else []
    missing = sum(1 for _ in table.runs()) - len(table.cells)
    found += [f'{missing} of the runs are "{NOT_RUN}".'] if missing else []
    return [*found, *table.definition.get("notes", [])]
