"""A matplotlib figure addressed in inches from its upper left corner, and legends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from goca.drawing.palettes import Array, colourise

MARGIN = 0.18  # inches: the rim
INK, PALE = "#20242a", "#68707a"
_SWATCH, _LEGEND_SIZE = 0.12, 7.5


class Page:
    """A figure addressed in inches from its upper left corner."""

    def __init__(self, drawn: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height = drawn, width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes in a box of the page."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def image(self, image: Any, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        """Draw an image or a map in a thin frame, stretched to its box; `options` are imshow's."""
        axes, pixels = self.axes(left, top, width, height), np.asarray(image)
        fine = "nearest" if pixels.shape[1] < 200 else "antialiased"
        axes.imshow(pixels, **{"interpolation": fine, "aspect": "auto", **options})
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set(linewidth=0.4, color="#c5cad0")
        return axes

    def text(
        self,
        x: float,
        y: float,
        words: str,
        room: float,
        align: str = "left",
        size: float = 8,
        colour: str = INK,
        weight: str = "normal",
    ) -> None:
        """Draw one line, vertically centred at y and cut with an ellipsis if it is wider than `room`."""
        shown = self.figure.text(
            x / self.width,
            1 - y / self.height,
            words,
            ha=align,
            va="center_baseline",
            fontsize=size,
            color=colour,
            weight=weight,
            parse_math=False,
        )
        kept = " ".join(words.split())
        shown.set_text(kept)
        while kept and (wide := shown.get_window_extent().width / self.figure.dpi) > room:
            kept = kept[: min(len(kept) - 1, int(len(kept) * room / wide) + 2)].rstrip(" ,")
            shown.set_text(kept + "…")

    def swatch(self, left: float, y: float, side: float, colour: Any) -> None:
        corner = (left / self.width, 1 - (y + side / 2) / self.height)
        self.figure.add_artist(
            Rectangle(
                corner,
                side / self.width,
                side / self.height,
                linewidth=0.4,
                facecolor=np.asarray(colour) / 255,
                edgecolor="#a0a6ad",
            )
        )


LegendLine = list[tuple[int, str, float]]


def legend_lines(drawn: Figure, classes: Sequence[tuple[int, str]], room: float) -> list[LegendLine]:
    """Legend entries (class id, name, inches) broken into lines that fit into `room`."""
    lines: list[LegendLine] = []
    used = room
    for class_id, name in classes:
        ruler = drawn.text(0, 0, name, fontsize=_LEGEND_SIZE, parse_math=False)
        need = _SWATCH + 0.07 + ruler.get_window_extent().width / drawn.dpi + 0.18
        ruler.remove()
        if used + need > room or not lines:
            lines.append([])
            used = 0
        lines[-1].append((class_id, name, need))
        used += need
    return lines


def draw_legend_line(page: Page, line: LegendLine, left: float, y: float, colours: Array) -> None:
    for class_id, name, need in line:
        page.swatch(left, y, _SWATCH, colourise(np.array([[class_id]]), colours)[0, 0])
        page.text(left + _SWATCH + 0.07, y, name, page.width - MARGIN - left, size=_LEGEND_SIZE)
        left += need
