"""The figure of two settings, as wide as a paper's column: common parts once, then the rows of both settings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from goca.drawing.figures import HEAD
from goca.drawing.palettes import overlay
from goca.drawing.sheet import PALE, Page, draw_legend_line, legend_lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from observation.figure import display, draw_head_maps, draw_layer_bars, draw_pixels, has_equal_heads, shape_of
from observation.numbers import Numbers
from observation.panel import GAP, LINE, UNDER, Panel
from observation.word_rows import TITLES, draw_map

WIDTH, RIM = 3.5, 0.06  # inches: a column, and its rim
ROOM = WIDTH - 2 * RIM
LABEL = 0.62  # the words and the settings' names
SHORT = {"raw scale": "raw", "where it wins": "wins"}
COLUMNS = ("heads_aggregated", "layers_aggregated", "raw scale", "rescaled", "refined", "where it wins")
CELL = (ROOM - LABEL - (len(COLUMNS) - 1) * GAP) / len(COLUMNS)
LARGE = (ROOM - 2 * GAP) / 3  # the image, and the two segmentations
BARS, HEADS = 0.8, 1.1  # heights of the bars of layers, and of the maps of heads
NOTE = 0.115  # a line below a map
SIZE = 6  # of most texts, in points


def compare(settings: Mapping[str, Numbers], title: str = "", ranking: bool = False) -> Figure:
    """A figure of two settings of the same image, prompt and words.

    ranking   show each word's rank among the words at every pixel, instead of the view "raw scale"

    The maps of a single head and of a layer's mean are left out, since both settings have the same ones.
    """
    numbers = list(settings.values())
    shape = shape_of(numbers[0]["image"])
    legend = legend_of(numbers)
    heads = [2 * LINE if has_equal_heads(each) else HEADS for each in numbers]
    words, marks = len(numbers[0]["words"]), len(numbers[0]["pixels"])
    row = CELL * shape + NOTE
    tops = np.cumsum(
        [
            RIM + 2.8 * LINE,
            UNDER + LARGE * shape + HEAD * (0.5 + len(legend)) + LINE,
            2 * (UNDER + BARS + LINE),
            sum(heads) + 2 * (UNDER + LINE),
            1.7 * LINE + words * (2 * row + GAP),
            (1.5 + 2 * marks) * LINE + RIM,
        ]
    )
    drawn = Figure(figsize=(WIDTH, float(tops[-1])), dpi=300, facecolor="white")
    FigureCanvasAgg(drawn)
    page = Page(drawn, WIDTH, float(tops[-1]))
    panels = {name: Panel(page, each, RIM, display(each["image"]), shape, ranking) for name, each in settings.items()}
    page.text(RIM, RIM + 0.5 * LINE, f"{' and '.join(settings)}: {title}", ROOM, size=8, weight="bold")
    page.text(RIM, RIM + 1.5 * LINE, str(numbers[0]["prompt"]), ROOM, size=SIZE, colour=PALE)
    draw_results(panels, tops[0], legend)
    for number, (name, panel) in enumerate(panels.items()):
        top = tops[1] + number * (UNDER + BARS + LINE)
        draw_layer_bars(panel, 0, top, ROOM, BARS, f"layer weights, {name}")
        top = tops[2] + number * (heads[0] + UNDER + LINE)
        draw_head_maps(panel, 0, top, ROOM, heads[number], f"head weights, {name}")
    draw_words(panels, tops[3], row)
    draw_pixel_scores(panels, tops[4])
    return drawn


def legend_of(numbers: list[Numbers]) -> list[list[tuple[int, str, float]]]:
    """The classes that either segmentation shows, in lines."""
    ruler = Figure(dpi=300)
    FigureCanvasAgg(ruler)
    seen = {class_id for each in numbers for class_id in np.unique(each["label_map"]).tolist()}
    classes = dict(zip(numbers[0]["class_ids"].tolist(), numbers[0]["class_names"].tolist()))
    return legend_lines(ruler, [(key, name) for key, name in classes.items() if key in seen], ROOM)


def draw_results(panels: Mapping[str, Panel], top: float, legend: list[list[tuple[int, str, float]]]) -> None:
    """The image with its pixels, and both segmentations."""
    first = next(iter(panels.values()))
    first.heading("image", 0, top, LARGE)
    draw_pixels(first, 0, top, LARGE)
    tall = LARGE * first.shape
    for number, (name, panel) in enumerate(panels.items(), start=1):
        left = number * (LARGE + GAP)
        panel.heading(name, left, top, LARGE)
        labels = overlay(panel.image.convert("L"), panel.numbers["label_map"], panel.palette, 0.65)
        panel.page.image(labels, panel.left + left, top + UNDER, LARGE, tall)
    for number, line in enumerate(legend):
        draw_legend_line(first.page, line, first.left, top + UNDER + tall + (0.75 + number) * HEAD, first.palette)


def draw_words(panels: Mapping[str, Panel], top: float, row: float) -> None:
    """For each word a row of maps per setting, one under the other."""
    first = next(iter(panels.values()))
    names = [name if name != "raw scale" or not first.ranking else "ranking" for name in COLUMNS]
    for number, name in enumerate(names):
        title = SHORT.get(name) or TITLES.get(name, name)
        first.page.text(RIM + column(number), top, title, CELL, size=SIZE, weight="bold")
    top += 0.7 * LINE
    for at, word in enumerate(first.numbers["words"].tolist()):
        for under, (name, panel) in enumerate(panels.items()):
            y = top + at * (2 * row + GAP) + under * row
            middle = y + CELL * panel.shape / 2
            if under == 0:
                panel.page.text(RIM, middle - 0.7 * LINE, word, LABEL - GAP, size=7.5, weight="bold")
            panel.page.text(RIM, middle + (0.2 * LINE if under == 0 else 0), name, LABEL - GAP, size=SIZE, colour=PALE)
            for number, column_name in enumerate(names):
                left = RIM + column(number)
                note = (
                    draw_map(panel, column_name, at, left, y, CELL).removesuffix(" of the image").replace(" to ", "–")
                )
                below = y + CELL * panel.shape + NOTE / 2
                panel.page.text(left + CELL / 2, below, note, CELL + GAP, "center", 5, PALE)


def column(number: int) -> float:
    return LABEL + number * (CELL + GAP)


def draw_pixel_scores(panels: Mapping[str, Panel], top: float) -> None:
    """The scores at the marked pixels, the highest bold, and the class there; a line per setting."""
    first = next(iter(panels.values()))
    page, words = first.page, first.numbers["words"].tolist()
    last = 0.75
    each = min(0.6, (ROOM - LABEL - 0.4 - last) / len(words))
    start = RIM + LABEL + 0.4
    page.text(RIM, top, "scores at x, y", LABEL + 0.4, size=SIZE, weight="bold")
    for number, word in enumerate(words):
        page.text(start + number * each, top, word, each - 0.03, size=SIZE, weight="bold")
    page.text(start + len(words) * each, top, "segmented as", last, size=SIZE, weight="bold")
    for row, (x, y) in enumerate(first.numbers["pixels"].tolist()):
        for under, (name, panel) in enumerate(panels.items()):
            line = top + (1.2 + 2 * row + under) * LINE
            if under == 0:
                page.text(RIM, line, f"{row + 1}:  {x}, {y}", 0.5, size=SIZE)
            page.text(RIM + 0.5, line, name, LABEL - 0.13, size=SIZE, colour=PALE)
            scores = panel.numbers["pixel_scores"][row]
            for number, score in enumerate(scores):
                weight = "bold" if number == int(np.argmax(scores)) else "normal"
                page.text(start + number * each, line, f"{score:.3f}", each, size=SIZE, weight=weight)
            said = str(panel.numbers["pixel_classes"][row])
            page.text(start + len(words) * each, line, said, last, size=SIZE)
