"""The rows of the observation figure: every stage of each word's score."""

from __future__ import annotations

import matplotlib
import numpy as np
from goca.drawing.figures import heat_overlay
from goca.drawing.palettes import colourise
from goca.drawing.sheet import PALE
from PIL import Image

from observation.panel import BREAK, CELL, GAP, LABEL, LINE, STAGES, VIEWS, Panel

NOTES = {  # column -> what stands under its heading
    "one_head": "of one layer",
    "one_layer": "mean of its heads",
    "heads_aggregated": "aggregated",
    "layers_aggregated": "aggregated",
    "rescaled": "per pixel",
    "refined": "the score",
    "raw scale": "layers aggregated",
    "own scale": "the same",
    "ranking": "rank among words",
    "where it wins": "by its score",
}
TITLES = {
    "one_layer": "layer",
    "heads_aggregated": "heads",
    "layers_aggregated": "layers",
}  # of columns whose heading is not their name


def draw_words(panel: Panel, top: float) -> None:
    numbers, page = panel.numbers, panel.page
    views = [view if view != "own scale" or not panel.ranking else "ranking" for view in VIEWS]
    for number, name in enumerate([*STAGES, *views]):
        title = f"head {numbers['head']}" if name == "one_head" else TITLES.get(name, name)
        panel.heading(title, column(number), top, CELL + GAP / 2, NOTES[name])
    top += 1.7 * LINE
    for row, word in enumerate(numbers["words"].tolist()):
        y = top + row * (CELL * panel.shape + LINE + GAP)
        page.text(panel.left, y + CELL * panel.shape / 2, word, LABEL - GAP, size=9, weight="bold")
        for number, name in enumerate([*STAGES, *views]):
            left = panel.left + column(number)
            note = draw_map(panel, name, row, left, y, CELL)
            page.text(left + CELL / 2, y + CELL * panel.shape + LINE / 2, note, CELL + GAP, "center", 5.5, PALE)


def column(number: int) -> float:
    return LABEL + number * (CELL + GAP) + (BREAK - GAP if number >= len(STAGES) else 0)


def draw_map(panel: Panel, name: str, row: int, left: float, top: float, width: float) -> str:
    """One map of a word, in inches of the page: a stage, or one of the views; returns the note on its values."""
    numbers, page, box = panel.numbers, panel.page, (left, top, width, width * panel.shape)
    if name in STAGES:
        page.image(heat_overlay(panel.image, numbers[name][row]), *box)
        return span(numbers[name][row])
    maps = numbers["layers_aggregated"]
    if name == "ranking":
        places, last = numbers["ranking"][row], len(maps)
        page.image(places, *box, cmap=matplotlib.colormaps["viridis_r"], vmin=1, vmax=max(last, 2))
        return f"1 of {last} on {100 * (places == 1).mean():.0f} %"
    if name == "where it wins":
        page.image(won(panel, row), *box)
        return f"{100 * numbers['wins'][row].mean():.0f} % of the image"
    top = float(np.nanmax(maps))
    low, high = (0.0, top) if name == "raw scale" else (float(np.nanmin(maps[row])), float(np.nanmax(maps[row])))
    page.image(maps[row], *box, cmap=matplotlib.colormaps["viridis"], vmin=low, vmax=max(high, low + 1e-12))
    return f"0 to {short(top)}" if name == "raw scale" else span(maps[row])


def won(panel: Panel, row: int) -> Image.Image:
    """The greyed image, in the class's colour where the word's score is the highest."""
    numbers = panel.numbers
    ids = dict(zip(numbers["class_names"].tolist(), numbers["class_ids"].tolist()))
    class_id = ids.get(str(numbers["words"][row]), max(ids.values()) + 1 + row)
    grey = panel.image.convert("L").convert("RGB")
    mask = Image.fromarray(numbers["wins"][row]).resize(grey.size, Image.Resampling.NEAREST)
    colour = tuple(colourise(np.array([[class_id]]), panel.palette)[0, 0].tolist())
    faint = Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.45)
    strong = Image.blend(grey, Image.new("RGB", grey.size, colour), 0.75)
    return Image.composite(strong, faint, mask)


def short(value: float) -> str:
    digits = 2 if abs(value) >= 0.1 or abs(value) < 0.0005 else 3
    return f"{value:.{digits}f}".removeprefix("-") if abs(value) < 0.0005 else f"{value:.{digits}f}"


def span(heat: np.ndarray) -> str:
    return f"{short(float(np.nanmin(heat)))} to {short(float(np.nanmax(heat)))}"
