"""The rows of the observation figure: every stage of each word's score."""

from __future__ import annotations

import matplotlib
import numpy as np
from goca.drawing.figures import PALE, heat_overlay
from goca.drawing.palettes import colourise
from PIL import Image

from observation.panel import BREAK, CELL, GAP, LABEL, LINE, OWN_SCALE, STAGES, VIEWS, Panel


def draw_words(panel: Panel, top: float) -> None:
    numbers, page = panel.numbers, panel.page
    titles = [f"head {numbers['head']}", "layer", "heads", "layers", "rescaled", "refined", *VIEWS]
    notes = [
        "of one layer",
        "mean of its heads",
        "aggregated",
        "aggregated",
        "per pixel",
        "the score",
        "layers aggregated",
        "the same",
        "by its score",
    ]
    if panel.ranking:
        titles[OWN_SCALE], notes[OWN_SCALE] = "ranking", "rank among words"
    for number, (title, note) in enumerate(zip(titles, notes)):
        panel.heading(title, column(number), top, CELL + GAP / 2, note)
    top += 1.7 * LINE
    for row, word in enumerate(numbers["words"].tolist()):
        y = top + row * (CELL * panel.shape + LINE + GAP)
        page.text(panel.left, y + CELL * panel.shape / 2, word, LABEL - GAP, size=9, weight="bold")
        for number, stage in enumerate(STAGES):
            heat = numbers[stage][row]
            box = panel.left + column(number), y, CELL, CELL * panel.shape
            page.picture(heat_overlay(panel.picture, heat), *box)
            page.text(box[0] + CELL / 2, y + CELL * panel.shape + LINE / 2, span(heat), CELL, "center", 5.5, PALE)
        draw_views(panel, row, y)


def column(number: int) -> float:
    return LABEL + number * (CELL + GAP) + (BREAK - GAP if number >= len(STAGES) else 0)


def draw_views(panel: Panel, row: int, y: float) -> None:
    numbers, page, tall = panel.numbers, panel.page, CELL * panel.shape
    maps = numbers["layers_aggregated"]
    ids = dict(zip(numbers["class_names"].tolist(), numbers["class_ids"].tolist()))
    class_id = ids.get(str(numbers["words"][row]), max(ids.values()) + 1 + row)
    won = numbers["wins"][row]
    top = float(np.nanmax(maps))
    notes = [f"0 to {short(top)}", span(maps[row]), f"{100 * won.mean():.0f} % of the image"]
    places, last = numbers["ranking"][row], len(maps)
    if panel.ranking:
        notes[1] = f"1 of {last} on {100 * (places == 1).mean():.0f} %"
    for number, note in enumerate(notes):
        box = panel.left + column(len(STAGES) + number), y, CELL, tall
        if number == 1 and panel.ranking:
            page.picture(places, *box, cmap=matplotlib.colormaps["viridis_r"], vmin=1, vmax=max(last, 2))
        elif number < 2:
            low, high = (0.0, top) if number == 0 else (float(np.nanmin(maps[row])), float(np.nanmax(maps[row])))
            page.picture(maps[row], *box, cmap=matplotlib.colormaps["viridis"], vmin=low, vmax=max(high, low + 1e-12))
        else:
            grey = panel.picture.convert("L").convert("RGB")
            mask = Image.fromarray(won).resize(grey.size, Image.Resampling.NEAREST)
            colour = tuple(colourise(np.array([[class_id]]), panel.palette)[0, 0].tolist())
            faint = Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.45)
            strong = Image.blend(grey, Image.new("RGB", grey.size, colour), 0.75)
            page.picture(Image.composite(strong, faint, mask), *box)
        page.text(box[0] + CELL / 2, y + tall + LINE / 2, note, CELL + GAP, "center", 5.5, PALE)


def short(value: float) -> str:
    digits = 2 if abs(value) >= 0.1 or abs(value) < 0.0005 else 3
    return f"{value:.{digits}f}".removeprefix("-") if abs(value) < 0.0005 else f"{value:.{digits}f}"


def span(heat: np.ndarray) -> str:
    return f"{short(float(np.nanmin(heat)))} to {short(float(np.nanmax(heat)))}"
