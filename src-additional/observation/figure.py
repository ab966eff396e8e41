"""The figure of an observation, drawn from its numbers alone; that of two settings is in `observation.comparison`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from goca.drawing.figures import HEAD
from goca.drawing.palettes import overlay
from goca.drawing.sheet import INK, MARGIN, PALE, Page, draw_legend_line, legend_lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from observation.numbers import Numbers
from observation.panel import (
    ACCENT,
    BREAK,
    CELL,
    EQUAL,
    GAP,
    LABEL,
    LARGE,
    LINE,
    NARROW,
    PANEL,
    SHOWN,
    SMALL,
    UNDER,
    Panel,
)
from observation.word_rows import draw_words


def draw(name: str, numbers: Numbers, title: str = "", ranking: bool = False) -> Figure:
    """Draw a figure of one setting; goca.drawing.figures.save_figure writes it.

    ranking   show each word's rank among the words at every pixel, instead of the view "own scale"
    """
    pixels = numbers["image"]
    shape = shape_of(pixels)
    legend = legend_of(numbers)
    below = max(LARGE * shape + HEAD * (0.5 + len(legend)), LARGE)
    above = 2 * MARGIN + 2 * HEAD + UNDER + below + HEAD
    words, marks = len(numbers["words"]), len(numbers["pixels"])
    table = above + 2 * LINE + words * (CELL * shape + LINE + GAP) + HEAD
    height = table + (marks + 2) * LINE + MARGIN
    width = MARGIN + PANEL
    drawn = Figure(figsize=(width, height), dpi=200, facecolor="white")
    FigureCanvasAgg(drawn)
    page = Page(drawn, width, height)
    panel = Panel(page, numbers, MARGIN, display(pixels), shape, ranking)
    page.text(panel.left, MARGIN + 0.5 * HEAD, f"{name}: {title}", PANEL - MARGIN, size=11, weight="bold")
    said = f"{numbers['prompt']}   |   {rules_of(numbers)}"
    page.text(panel.left, MARGIN + 1.4 * HEAD, said, PANEL - MARGIN, size=SMALL, colour=PALE)
    top = 2 * MARGIN + 2 * HEAD
    draw_image(panel, top)
    draw_segmentation(panel, top, legend)
    draw_layers(panel, top)
    draw_heads(panel, top)
    draw_words(panel, above)
    draw_table(panel, table)
    return drawn


def shape_of(pixels: np.ndarray) -> float:
    """Height / width of the image as drawn: very long ones are stretched to the page."""
    return float(min(max(pixels.shape[0] / pixels.shape[1], 0.4), 1.8))


def rules_of(numbers: Numbers) -> str:
    """The head, layer and rescaling rules of a setting, in a line."""
    rules = json.loads(str(numbers["settings"]))
    return ", ".join(f"{key.removesuffix('_method')}: {rules[key]}" for key in rules if key.endswith("_method"))


def display(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = SHOWN / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def legend_of(numbers: Numbers) -> list[list[tuple[int, str, float]]]:
    ruler = Figure(dpi=200)
    FigureCanvasAgg(ruler)
    seen = set(np.unique(numbers["label_map"]).tolist())
    classes = dict(zip(numbers["class_ids"].tolist(), numbers["class_names"].tolist()))
    return legend_lines(ruler, [(key, name) for key, name in classes.items() if key in seen], LARGE + 0.2)


# ---- above: the image, the result, layers and heads


def draw_image(panel: Panel, top: float) -> None:
    panel.heading("image", 0, top, LARGE)
    draw_pixels(panel, 0, top, LARGE)


def draw_pixels(panel: Panel, left: float, top: float, width: float) -> None:
    """The image with its numbered pixels, under a heading at `top`."""
    axes = panel.page.image(panel.image, panel.left + left, top + UNDER, width, width * panel.shape)
    height, width = panel.numbers["image"].shape[:2]
    for number, (x, y) in enumerate(panel.numbers["pixels"], start=1):
        # pixel centres in the coordinates of the drawn image
        at = (x + 0.5) * panel.image.width / width - 0.5, (y + 0.5) * panel.image.height / height - 0.5
        axes.plot(*at, "o", ms=8, markerfacecolor="white", markeredgecolor=INK, markeredgewidth=0.6, clip_on=False)
        axes.text(*at, str(number), ha="center", va="center_baseline", fontsize=5.5, color=INK)


def draw_segmentation(panel: Panel, top: float, legend: Sequence[list[tuple[int, str, float]]]) -> None:
    left = LARGE + BREAK
    panel.heading("segmentation", left, top, LARGE)
    labels = overlay(panel.image.convert("L"), panel.numbers["label_map"], panel.palette, 0.65)
    panel.page.image(labels, panel.left + left, top + UNDER, LARGE, LARGE * panel.shape)
    for number, line in enumerate(legend):
        y = top + UNDER + LARGE * panel.shape + (0.75 + number) * HEAD
        draw_legend_line(panel.page, line, panel.left + left, y, panel.palette)


def draw_layers(panel: Panel, top: float) -> None:
    draw_layer_bars(panel, 2 * (LARGE + BREAK), top, 2.75, LARGE, "layer weights")


def draw_layer_bars(panel: Panel, left: float, top: float, width: float, tall: float, heading: str) -> None:
    """Each layer's weight as a bar, at that position of the panel, under a heading."""
    names, weights = panel.numbers["layers"].tolist(), panel.numbers["layer_weights"]
    chosen = names.index(str(panel.numbers["layer"]))
    panel.heading(heading, left, top, width)
    named, long = 1.5, width - 1.5 - 0.25  # of the names, of the longest bar
    axes = panel.page.axes(panel.left + left + named, top + UNDER, long, tall)
    colours = [ACCENT if number == chosen else "#9aa7b5" for number in range(len(names))]
    axes.barh(range(len(names)), weights, color=colours, height=0.8)
    axes.set(xlim=(0, max(weights.max(), 1e-9)), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=[])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set(linewidth=0.4, color="#c5cad0")
    for number in labelled(weights, chosen, tall):
        x, y = panel.left + left + named, top + UNDER + tall * (number + 0.5) / len(names)
        colour = ACCENT if number == chosen else INK
        panel.page.text(x - 0.06, y, names[number], named, "right", 5.5, colour)
        end = x + long * weights[number] / max(weights.max(), 1e-9) + 0.04
        panel.page.text(end, y, f"{weights[number]:.2f}", 0.4, size=5.5, colour=colour)


def labelled(weights: np.ndarray, chosen: int, height: float) -> list[int]:
    """Choose the bars with room for a name: the selected one first, then by weight."""
    apart = 0.1 * len(weights) / height
    order = [chosen, *np.argsort(-weights, kind="stable").tolist()]
    kept: list[int] = []
    for number in order:
        if all(abs(number - other) >= apart for other in kept):
            kept.append(number)
    return kept


def draw_heads(panel: Panel, top: float) -> None:
    left = 2 * (LARGE + BREAK) + 2.75 + BREAK
    draw_head_maps(panel, left, top, PANEL - MARGIN - left, LARGE, "head weights per pixel")


def draw_head_maps(panel: Panel, left: float, top: float, width: float, tall: float, heading: str) -> None:
    """Each head's weight at each pixel, at that position of the panel; one sentence if all are equal everywhere."""
    weights, means = panel.numbers["head_weights"], panel.numbers["head_weight_means"]
    count = len(weights)
    even = 1 / count
    far = float(np.abs(weights - even).max())
    panel.heading(heading, left, top, width, f"{panel.numbers['layer']}, {count} heads")
    if has_equal_heads(panel.numbers):
        said = f"All {count} heads weigh the same, {even:.3g}, at every pixel."
        panel.page.text(panel.left + left, top + 2.2 * LINE, said, width, size=7)
        return
    room = tall + UNDER - 2 * LINE - HEAD
    columns = heads_columns(count, width, room, panel.shape)
    side = head_side(count, columns, width, room, panel.shape)
    for number, (weight, mean) in enumerate(zip(weights, means)):
        x = panel.left + left + number % columns * (side + 2 * GAP)
        y = top + 1.6 * LINE + number // columns * (side * panel.shape + LINE)
        mark = number == int(panel.numbers["head"])
        panel.page.text(
            x + side / 2,
            y + LINE / 2,
            f"{number}: {mean:.2f}" if side > NARROW else str(number),
            side + 2 * GAP,
            "center",
            5.5,
            ACCENT if mark else INK,
            "bold" if mark else "normal",
        )
        panel.page.image(weight, x, y + LINE, side, side * panel.shape, cmap="RdBu_r", vmin=even - far, vmax=even + far)
    bar = panel.page.axes(panel.left + left + 0.4, top + UNDER + tall - 0.08, width - 0.95, 0.07)
    bar.imshow(np.linspace(0, 1, 256)[None], cmap="RdBu_r", aspect="auto")
    bar.set_axis_off()
    y = top + UNDER + tall - 0.045
    panel.page.text(panel.left + left + 0.36, y, f"{even - far:.2f}", 0.5, "right", 5.5)
    panel.page.text(panel.left + left + width - 0.51, y, f"{even + far:.2f}", 0.5, size=5.5)


def has_equal_heads(numbers: Numbers) -> bool:
    """Whether the layer's heads have the same weight everywhere, as in vanilla."""
    weights = numbers["head_weights"]
    return bool(np.abs(weights - 1 / len(weights)).max() < EQUAL)


def head_side(count: int, columns: int, width: float, height: float, shape: float) -> float:
    """Width of each head's map, in inches, in that many columns."""
    lines = -(-count // columns)
    return min((width + 2 * GAP) / columns - 2 * GAP, (height / lines - LINE) / shape)


def heads_columns(count: int, width: float, height: float, shape: float) -> int:
    """Choose the number of columns with the largest maps."""
    return max(range(1, count + 1), key=lambda columns: head_side(count, columns, width, height, shape))


# ---- the table


def draw_table(panel: Panel, top: float) -> None:
    numbers, page = panel.numbers, panel.page
    words = numbers["words"].tolist()
    first, last = LABEL, 1.2
    each = min(1.4, (PANEL - MARGIN - first - last) / len(words))
    panel.heading("pixels", 0, top, first)
    page.text(panel.left, top + LINE, "x, y", first, size=SMALL, colour=PALE)
    for number, word in enumerate(words):
        x = panel.left + first + number * each
        page.text(x, top, word, each - GAP, size=8, weight="bold")
        page.text(x, top + LINE, "attention", 0.5, size=SMALL, colour=PALE)
        page.text(x + 0.55, top + LINE, "score", each - 0.55, size=SMALL, colour=PALE)
    x = panel.left + first + len(words) * each
    page.text(x, top, "segmented as", last, size=8, weight="bold")
    for row, (place, attention, scores) in enumerate(
        zip(numbers["pixels"].tolist(), numbers["pixel_attention"], numbers["pixel_scores"]), start=2
    ):
        y = top + row * LINE
        page.text(panel.left, y, f"{row - 1}:  {place[0]}, {place[1]}", first, size=7)
        best = int(np.argmax(scores))
        for number in range(len(words)):
            cell, weight = panel.left + first + number * each, "bold" if number == best else "normal"
            page.text(cell, y, f"{attention[number]:.4f}", 0.55, size=7)
            page.text(cell + 0.55, y, f"{scores[number]:.3f}", each - 0.55, size=7, weight=weight)
        page.text(x, y, str(numbers["pixel_classes"][row - 2]), last, size=7)
