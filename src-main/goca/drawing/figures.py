"""Images of results: heat maps over an image, and a figure with one row per image.

    row = Row(image, truth, {"vanilla": before, "GoCA": after}, words=[("cat", heat)], caption="cat, grass")
    figure([row], class_names=["background", "cat"]).savefig("rows.pdf")

Drawn with matplotlib's Agg canvas and without pyplot: no window, and no state besides the figure itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from goca.drawing.class_colours import class_palette
from goca.drawing.palettes import (
    VOID,
    Array,
    DrawingError,
    array_of,
    as_image,
    labels_of,
    overlay,
    palette_of,
)
from goca.drawing.sheet import MARGIN, PALE, Page, draw_legend_line, legend_lines
from goca.files.atomic import whole_file


def heat_overlay(image: Any, heat: Any, colours: str = "YlOrRd", alpha: float = 0.9) -> Image.Image:
    """A word's map over the grey image; higher values are more opaque. heat [g, g], any range; NaN counts as lowest."""
    under = as_image(image)
    scaled = Image.fromarray(_unit(heat).astype(np.float32)).resize(under.size, Image.Resampling.BICUBIC)
    warmth = np.asarray(scaled).clip(0, 1)[..., None]
    grey = np.asarray(under.convert("L"), dtype=np.float32)[..., None] / 255
    base = np.broadcast_to(0.55 + 0.4 * grey, (*grey.shape[:2], 3))
    hot = matplotlib.colormaps[colours](0.1 + 0.75 * warmth[..., 0])[..., :3]
    opacity = alpha * warmth**0.6
    return Image.fromarray((255 * (base * (1 - opacity) + hot * opacity)).round().astype(np.uint8))


def pca_image(feature: Any) -> Image.Image:
    """A dense feature's first three principal components as red, green and blue, each scaled to 0..255.

    feature   [C, h, w], any range; fewer than three channels leave the other colours at 0
    returns   RGB, h x w. A component's sign is fixed by its largest loading being positive.
    errors    DrawingError for another shape, or values that are not finite
    """
    values = array_of(feature).astype(np.float64)
    if values.ndim != 3 or not values.size or not np.isfinite(values).all():
        raise DrawingError(f"a dense feature is [C, h, w], finite; found shape {values.shape}")
    channels = values.reshape(len(values), -1)  # [C, h*w]
    channels = channels - channels.mean(1, keepdims=True)
    shorter = channels if len(channels) <= channels.shape[1] else channels.T
    axes = np.linalg.eigh(shorter @ shorter.T)[1][:, ::-1][:, :3]  # the largest eigenvalue first
    loadings = axes if shorter is channels else channels @ axes  # [C, <= 3]
    largest = loadings[np.abs(loadings).argmax(0), range(loadings.shape[1])]
    components = channels.T @ (loadings * np.sign(largest))
    spread = np.ptp(components, axis=0)
    unit = (components - components.min(0)) / np.where(spread > 0, spread, 1)
    colours = np.zeros((channels.shape[1], 3))
    colours[:, : unit.shape[1]] = unit
    return Image.fromarray((255 * colours).round().astype(np.uint8).reshape(*values.shape[1:], 3))


def _unit(heat: Any) -> Array:
    values = array_of(heat).astype(float)
    if values.ndim != 2 or not values.size:
        raise DrawingError(f"a heat map is [g, g]; found shape {values.shape}")
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = values[finite].min(), values[finite].max()
    return np.where(finite, (values - low) / (high - low or 1), 0)


# --- the figure --------------------------------------------------------------------------------------------------

CELL, GAP, HEAD = 1.5, 0.08, 0.24  # inches: width of an image, space between two, height of a line of text


@dataclass
class Row:
    """One image of a figure. Label maps and heat maps may have any size; they are drawn at the image's.

    predictions  title -> label map; a figure has a column for every title, in order of appearance
    words        (word, map [g, g]) pairs, drawn at the end of the row below their words
    caption      a line below the row
    notes        title -> a line below that prediction
    outlined     bool [h, w]: a region whose border is drawn on every prediction
    """

    image: Any
    truth: Any = None
    predictions: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[tuple[str, Any]] = ()
    caption: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    outlined: Any = None


def figure(
    rows: Sequence[Row],
    class_names: Sequence[str] = (),
    palette: str | Any = None,
    title: str = "",
    alpha: float = 0.75,
) -> Figure:
    """Rows of image, truth, predictions and word maps, with a legend of the classes that occur.

    class_names  class id -> name in the legend; an id beyond it is shown as "class 7"
    palette      None: the colours of `goca.drawing.class_colours`; or a palette that `palette_of` accepts
    alpha        opacity of labels on the image, 0..1
    returns      a matplotlib Figure; write it with its savefig, or with save_figure
    errors       DrawingError if there is nothing to draw
    """
    if not rows:
        raise DrawingError("a figure needs at least one row")
    palette = class_palette(class_names) if palette is None else palette
    columns, bands = _columns(rows), [_Band.of(row, first=number == 0) for number, row in enumerate(rows)]
    width = 2 * MARGIN + len(columns) * (CELL + GAP) - GAP
    drawn = Figure(dpi=200, facecolor="white")
    FigureCanvasAgg(drawn)
    legend = legend_lines(drawn, _seen(rows, class_names), width - 2 * MARGIN)
    top = MARGIN + (1.5 * HEAD if title else 0)
    height = top + sum(band.height for band in bands) + len(legend) * HEAD + MARGIN
    drawn.set_size_inches(width, height)
    page = Page(drawn, width, height)
    if title:
        page.text(MARGIN, MARGIN + 0.6 * HEAD, title, width - 2 * MARGIN, size=10, weight="bold")
    for band in bands:
        _draw_band(page, band, top, _panels(band.row, band.image, columns, palette, alpha))
        top += band.height
    for line in legend:
        draw_legend_line(page, line, MARGIN, top + 0.7 * HEAD, palette_of(palette))
        top += HEAD
    return drawn


@dataclass(frozen=True)
class _Band:
    """The part of the page that one row takes, with heights in inches.

    first         whether all columns get a heading; otherwise only word maps do
    above, below  space for headings; for notes and the caption
    tall          height of the images
    """

    row: Row
    image: Image.Image
    first: bool
    above: float
    tall: float
    below: float

    @classmethod
    def of(cls, row: Row, first: bool) -> _Band:
        image = as_image(row.image)
        tall = CELL * min(max(image.height / image.width, 0.4), 1.8)
        lines = bool(row.notes) + bool(row.caption)
        return cls(row, image, first, HEAD if first or row.words else 0.0, tall, HEAD * lines)

    @property
    def height(self) -> float:
        return self.above + self.tall + self.below + GAP


def _draw_band(page: Page, band: _Band, top: float, panels: Sequence[_Panel]) -> None:
    """Draw a row: images side by side, headings above, notes below, and the caption under all of them."""
    row, top = band.row, top + band.above
    for number, panel in enumerate(panels):
        left = MARGIN + number * (CELL + GAP)
        if panel.heading and (band.first or panel.is_word):
            page.text(left + CELL / 2, top - 0.42 * HEAD, panel.heading, CELL, align="center")
        if panel.image is None:
            continue
        axes = page.image(panel.image, left, top, CELL, band.tall)
        if row.outlined is not None and panel.heading in row.predictions:
            outline(axes, row.outlined, panel.image.size)
        if note := row.notes.get(panel.heading):
            page.text(left + CELL / 2, top + band.tall + 0.5 * HEAD, note, CELL, "center", 7)
    if row.caption:
        baseline = top + band.tall + band.below - 0.5 * HEAD
        page.text(MARGIN, baseline, row.caption, page.width - 2 * MARGIN, size=6.5, colour=PALE)


def outline(axes: Axes, mask: Any, size: tuple[int, int]) -> None:
    """Draw the border of a mask [h, w] on an image of (width, height), black on white to be visible everywhere."""
    inside = np.pad(array_of(mask).astype(float), 1)
    if not inside.any():
        return
    (h, w), (width, height) = inside.shape, size
    x = (np.arange(w) - 0.5) * width / (w - 2) - 0.5  # centres of the mask's pixels, in those of the image
    y = (np.arange(h) - 0.5) * height / (h - 2) - 0.5
    limits = axes.get_xlim(), axes.get_ylim()
    for colour, thick in (("white", 1.6), ("black", 0.7)):
        axes.contour(x, y, inside, levels=[0.5], colors=[colour], linewidths=[thick])
    axes.set(xlim=limits[0], ylim=limits[1])


def save_figure(drawn: Figure, path: str | os.PathLike[str], dpi: int = 200) -> Path:
    """Write a figure in the format of the path's suffix (png, pdf, svg), to a temporary name first, then renamed."""
    path = Path(path)
    kinds = drawn.canvas.get_supported_filetypes()
    if (kind := path.suffix.lstrip(".").lower()) not in kinds:
        raise DrawingError(f"{path.name}: a figure is saved as one of {', '.join(sorted(kinds))}")
    with whole_file(path) as temporary:
        drawn.savefig(temporary, format=kind, dpi=dpi)
    return path


def _columns(rows: Sequence[Row]) -> list[str]:
    """One heading per column; those of word maps are empty, since each row has its own words."""
    truth = ["truth"] if any(row.truth is not None for row in rows) else []
    titles = list(dict.fromkeys(title for row in rows for title in row.predictions))
    return ["image", *truth, *titles, *[""] * max(len(row.words) for row in rows)]


class _Panel(NamedTuple):
    """One cell of a row; `image` is None if the row has nothing for its column."""

    heading: str
    image: Image.Image | None
    is_word: bool = False


def _panels(row: Row, image: Image.Image, columns: Sequence[str], palette: Any, alpha: float) -> list[_Panel]:
    """The cells of a row, one per column."""
    maps = {"truth": row.truth, **row.predictions}
    grey = image.convert("L")  # so that classes keep the legend's colours
    panels = [_Panel("image", image)]
    words = iter(row.words)
    for heading in columns[1:]:
        if not heading:
            word, heat = next(words, ("", None))
            panels.append(_Panel(word, None if heat is None else heat_overlay(image, heat), is_word=True))
        else:
            labels = maps.get(heading)
            panels.append(_Panel(heading, None if labels is None else overlay(grey, labels, palette, alpha)))
    return panels


def _seen(rows: Sequence[Row], class_names: Sequence[str]) -> list[tuple[int, str]]:
    """The classes of all label maps, and their names."""
    maps = [labels for row in rows for labels in (row.truth, *row.predictions.values()) if labels is not None]
    found = []
    for class_id in sorted({int(class_id) for labels in maps for class_id in np.unique(labels_of(labels))}):
        name = class_names[class_id] if class_id < len(class_names) else f"class {class_id}"
        found.append((class_id, "void" if class_id == VOID and class_id >= len(class_names) else name))
    return found
