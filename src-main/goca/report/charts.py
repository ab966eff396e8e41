"""Charts of a report: the threshold curve as SVG, bars, swatches, the confusion table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from goca.drawing.class_colours import class_palette
from goca.drawing.palettes import Array, as_hex, bright_palette, colourise
from goca.report.markup import Markup, join, tag

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 24, 56  # around the plot
Point = tuple[float, float | None]


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in 0..1 as a percentage; None becomes a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(ends: Sequence[float] | None, before: str = "") -> str:
    """Format an interval in per cent: "[a, b]", or "a to b" after the text `before`; None becomes ""."""
    if ends is None:
        return ""
    low, high = ends
    return f"{before}{percent(low)} to {percent(high)}" if before else f"[{percent(low)}, {percent(high)}]"


def bar(share: float | None) -> Markup:
    """Draw a share in 0..1 as a bar; None leaves an empty bar of the same size."""
    kind = "bar empty" if share is None else "bar"
    return tag("span", tag("i", style=f"--share:{share or 0:.4f}"), class_=kind, aria_hidden="true")


def colours_of(results: Mapping[str, Any]) -> Array:
    """Return the palette of a run's thumbnails. Runs of earlier versions stored no colours and used class ids."""
    kinds = results["per_class"]
    named = all("colour" in each for each in kinds)
    return class_palette({each["id"]: each["name"] for each in kinds}) if named else bright_palette()


def swatch(class_id: int, palette: Array) -> Markup:
    """Draw a square in the colour that a class has in overlays."""
    colour = as_hex(colourise([[class_id]], palette)[0, 0])
    return tag("span", class_="swatch", style=f"--colour:{colour}", aria_hidden="true")


def curve(lines: Sequence[Sequence[Point]], marks: Mapping[str, Point], label: str) -> Markup:
    """Draw shares over thresholds as lines a and b; `marks` are named points on the first line.

    Undefined values are left out. The vertical axis spans the values, rounded to full steps; it need not start at zero.
    """
    defined = [(x, y) for line in lines for x, y in line if y is not None]
    xs, ys = [x for x, _ in defined], [y for _, y in defined]
    step = _step(100 * (max(ys) - min(ys)))
    low, high = math.floor(100 * min(ys) / step) * step, math.ceil(100 * max(ys) / step) * step
    high = high if high > low else low + step
    span = (max(xs) - min(xs)) or 1

    def place(x: float, share: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / span, (100 * share - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_level(value, place(0, value / 100)[1]) for value in _steps(low, high, step)]
    parts += [_text(f"{x:g}", place(x, 0)[0], HEIGHT - BOTTOM + 22, "middle") for x in _spread(sorted(set(xs)))]
    parts.append(_text("background threshold", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle"))
    for name, line in reversed([*zip("ab", lines)]):
        points = [(x, y) for x, y in line if y is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        parts.append(tag("polyline", points=path, class_=f"curve {name}"))
        parts += [_dot(*place(x, y), name, f"{percent(y, 2)} at {x:g}") for x, y in points]
    for name, (x, y) in marks.items():
        if y is not None:
            parts.append(_mark(name, *place(x, y)))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=label)


def reliability(bins: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """Draw the share of words that are present over their mean score, and the diagonal of a calibrated score."""
    points = [(each["mean_presence"], each["present"], each["words"]) for each in bins if each["words"]]

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    steps, below = range(0, 101, 20), HEIGHT - BOTTOM + 22
    parts = [_level(value, place(0, value / 100)[1]) for value in steps]
    parts += [_text(str(value), place(value / 100, 0)[0], below, "middle") for value in steps]
    parts.append(_text("mean presence, %", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle"))
    for name, line in (("b", [(0, 0), (1, 1)]), ("a", [(x, y) for x, y, _ in points])):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in line))
        parts.append(tag("polyline", points=path, class_=f"curve {name}"))
    parts += [_dot(*place(x, y), "a", f"{percent(y)} % of {words:,} words are present") for x, y, words in points]
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=label)


def confusion_table(confusion: Mapping[str, Any], palette: Array) -> Markup:
    """Make the confusion table: rows are true classes, columns predicted classes, cells per cent of a row's pixels.

    Wrong cells are shaded by the square root of the share, so that a share of a tenth is visible.
    """
    classes = confusion["classes"]
    names = [join(swatch(each["id"], palette), each["name"]) for each in classes]
    rows = []
    for number, (each, pixels) in enumerate(zip(classes, confusion["pixels"])):
        shares = [count / each["label_pixels"] if each["label_pixels"] else None for count in pixels]
        cells = [
            tag("td", _share(share), class_="right", style=f"--share:{share or 0:.4f}")
            if column == number
            else tag("td", _share(share), style=f"--share:{math.sqrt(share or 0):.4f}")
            for column, share in enumerate(shares)
        ]
        rows.append(tag("tr", tag("th", names[number], scope="row"), *cells))
    corner = tag("th", "true \\ predicted", scope="col")
    head = tag("thead", tag("tr", corner, *(tag("th", name, scope="col") for name in names)))
    return tag("div", tag("table", head, tag("tbody", rows), class_="confusion"), class_="scroll", tabindex=0)


def _share(share: float | None) -> str:
    return "–" if share is None else "·" if share == 0 else "<0.1" if share < 0.0005 else percent(share)


def _level(value: float, y: float) -> Markup:
    line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return join(line, _text(f"{value:g}", LEFT - 8, y + 4, "end"))


def _text(text: str, x: float, y: float, anchor: str, class_: str | None = None) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _dot(x: float, y: float, name: str, title: str) -> Markup:
    return tag("circle", tag("title", title), cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.5, class_=name)


def _mark(name: str, x: float, y: float) -> Markup:
    anchor = "end" if x > WIDTH - 90 else "start" if x < LEFT + 60 else "middle"
    line = tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{y:.1f}", y2=HEIGHT - BOTTOM, class_="mark")
    return join(line, _text(name, x, y - 10, anchor, "strong"))


def _step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten such that about five steps cover the span."""
    power = 10.0 ** math.floor(math.log10(max(span, 0.1) / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= max(span, 0.1))


def _steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + number * step, 10) for number in range(round((high - low) / step) + 1)]


def _spread(values: Sequence[float], most: int = 10) -> Sequence[float]:
    return values[:: max(1, math.ceil(len(values) / most))]
