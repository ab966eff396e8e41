"""What the scaling study writes: its rows, its tables, its figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from goca.files.atomic import whole_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scaling.segmentation import PICKED
from scaling.summary import METHODS, Measured

COLOURS = {"vanilla": "#8a929c", "GoCA": "#2459a6"}
MARKERS = {"mini-sd": "o", "mini-sd-small": "s", "mini-pixart": "^", "mini-flux": "D"}
# column -> (measure, decimals, whether its interval is shown)
COLUMNS = {
    "words found, %": ("words found", 1, True),
    "just the words, %": ("just the words", 1, False),
    "Fréchet distance": ("Frechet distance", 1, True),
    "validation loss": ("validation loss", 3, False),
    "vanilla": ("mIoU, paper, vanilla", 1, True),
    "+ head": ("mIoU, paper, + head", 1, False),
    "+ layer": ("mIoU, paper, + layer", 1, False),
    "+ rescaling": ("mIoU, paper, + rescaling", 1, False),
    "GoCA": ("mIoU, paper, GoCA", 1, True),
    "hand-picked": (f"mIoU, paper, {PICKED}", 1, False),
    "background: vanilla": ("IoU of the background, paper, vanilla", 1, False),
    "background: GoCA": ("IoU of the background, paper, GoCA", 1, False),
    "released: vanilla": ("mIoU, released, vanilla", 1, False),
    "released: GoCA": ("mIoU, released, GoCA", 1, False),
}


def point_table(measured: Sequence[Measured], world: str) -> list[dict[str, str]]:
    """A row for each point of a world, in the order of the words found."""
    found: dict[str, dict[str, Measured]] = {}
    for each in measured:
        if each.world == world:
            found.setdefault(each.point, {})[each.measure] = each

    def cell(each: Measured | None, decimals: int, spread: bool) -> str:
        if each is None:
            return ""
        low, high = each.interval
        return f"{each.value:.{decimals}f}" + (f" [{low:.{decimals}f}, {high:.{decimals}f}]" if spread else "")

    ordered = sorted(found.items(), key=lambda item: item[1]["words found"].value)
    return [
        {"point": name, **{column: cell(of.get(m), *style) for column, (m, *style) in COLUMNS.items()}}
        for name, of in ordered
    ]


def attention_table(chosen: Mapping[str, Any], world: str) -> list[dict[str, Any]]:
    """For each point, the shares of attention in %, mean over layers, and how well it tells objects' cells: AUC."""
    rows = []
    for point, choices in chosen.items():
        if (found := choices.get(f"{world}/paper")) is None:
            continue
        kinds = [kind for kind in found["layers"][0] if kind not in ("layer", "side", "weight")]
        shares = {f"{kind}, %": 100 * float(np.mean([layer[kind] for layer in found["layers"]])) for kind in kinds}
        places = {f"AUC: {name}": value for name, value in found["places"].items()}
        rows.append({"point": point, "t": found["t"], **shares, **places})
    return rows


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with whole_file(file) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def figure(measured: Sequence[Measured], power: str = "words found", protocol: str = "paper") -> Figure:
    """Segmentation against generation, a panel per world; of each training a line for vanilla and one for GoCA."""
    table = {(each.point, each.world, each.measure): each for each in measured}
    worlds = list(dict.fromkeys(each.world for each in measured))
    drawn = Figure(figsize=(4.4 * len(worlds), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    for axes, world in zip(drawn.subplots(1, len(worlds), squeeze=False)[0], worlds):
        points = [each for each in measured if each.world == world and each.measure == power]
        for method in METHODS:
            scores = [table[each.point, world, f"mIoU, {protocol}, {method}"] for each in points]
            x, y = [each.value for each in points], [score.value for score in scores]
            for kind in dict.fromkeys(each.kind for each in points):
                own = [i for i, each in enumerate(points) if each.kind == kind]
                line = [x[i] for i in own], [y[i] for i in own]
                axes.plot(*line, color=COLOURS[method], linewidth=1.2, alpha=0.7, zorder=1)
            axes.plot([], [], color=COLOURS[method], label=method)
            for each, score in zip(points, scores):
                spans = [np.abs(np.array(one.interval)[:, None] - one.value) for one in (each, score)]
                axes.errorbar(
                    each.value,
                    score.value,
                    xerr=spans[0],
                    yerr=spans[1],
                    color=COLOURS[method],
                    marker=MARKERS[each.kind],
                    markersize=5,
                    linewidth=0.6,
                )
        for kind in dict.fromkeys(each.kind for each in points):
            axes.plot([], [], MARKERS[kind], color="#333", markersize=5, label=kind)
        axes.set(title=world, xlabel=f"generation: {power}, %", ylabel="segmentation: mIoU, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="upper left")
    return drawn


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table; a list [value, low, high] becomes "value (low to high)"."""

    def cell(value: Any) -> str:
        if isinstance(value, list):
            return f"{value[0]:+.1f} ({value[1]:+.1f} to {value[2]:+.1f})"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [" | ".join(rows[0]), "|".join(["---"] * len(rows[0]))]
    lines += [" | ".join(cell(row.get(key, "")) for key in rows[0]) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
