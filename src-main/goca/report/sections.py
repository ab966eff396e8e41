"""Sections of a report: threshold curve, classes, label distribution, confusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goca.report.charts import bar, colours_of, confusion_table, curve, interval, percent, swatch
from goca.report.markup import Markup, join, section, tag

NAMES = {
    "mIoU": "mean IoU",
    "mIoU_without_background": "mean IoU without background",
    "frequency_weighted_IoU": "frequency-weighted IoU",
    "pixel_accuracy": "pixel accuracy",
}
BACKGROUND = 0
SHOWN = 20  # classes in the distribution that are not folded away
PIXEL_KINDS = ("label_pixels", "predicted_pixels_best")  # keys of a class in `per_class`
Results = Mapping[str, Any]


def thresholds(results: Results) -> Markup | None:
    """The threshold curve; None for a single threshold or without counts."""
    swept, best, fixed = results["metrics"]["swept"], results["mIoU"]["best"], results["mIoU"]["fixed"]
    keys = ["mIoU", "mIoU_without_background"]
    lines = [sorted((each["threshold"], each[key]) for each in swept) for key in keys]
    if len(swept) < 2 or not all(any(y is not None for _, y in line) for line in lines):
        return None
    marks = {f"best {percent(best['mIoU'])}": (best["threshold"], best["mIoU"])}
    head = tag("tr", tag("th", "threshold", scope="col"), *(tag("th", name, scope="col") for name in NAMES.values()))
    rows = [
        tag("tr", tag("th", f"{each['threshold']:g}", scope="row"), *(tag("td", percent(each[k], 2)) for k in NAMES))
        for each in swept
    ]
    table = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
    label = f"Mean IoU over the background threshold; best {percent(best['mIoU'])} % at {best['threshold']:g}, "
    label += f"{percent(fixed['mIoU'])} % at {fixed['threshold']:g}"
    key = tag("li", tag("i"), f"{NAMES[keys[0]]}, %"), tag("li", tag("i", class_="b"), f"{NAMES[keys[1]]}, %")
    return section(
        "Background threshold",
        tag("ul", key, class_="key"),
        curve(lines, marks, label),
        tag("details", tag("summary", "All numbers, in %"), table),
    )


def classes(results: Results) -> Markup:
    """IoU per class, in a table whose headers sort it."""
    total = sum(each["label_pixels"] for each in results["per_class"]) or 1
    palette = colours_of(results)
    columns = [
        ("class", "text"),
        ("IoU, best", "number"),
        ("IoU, fixed", "number"),
        ("images", "number"),
        ("labelled pixels", "number"),
    ]
    heads = [
        tag(
            "th",
            tag("button", name, type="button"),
            scope="col",
            aria_sort="none",
            data_kind=kind,
            data_first="ascending" if kind == "text" else "descending",
        )
        for name, kind in columns
    ]
    rows = [
        tag(
            "tr",
            tag("th", swatch(each["id"], palette), each["name"], scope="row", data_value=each["name"]),
            value_cell("IoU, best", each["iou_best"], bar(each["iou_best"])),
            value_cell("IoU, fixed", each["iou_fixed"]),
            tag("td", f"{each['images']:,}", data_value=each["images"], data_label="images"),
            tag(
                "td",
                f"{percent(each['label_pixels'] / total, 2)} %",
                data_value=each["label_pixels"],
                data_label="labelled",
            ),
        )
        for each in results["per_class"]
    ]
    table = tag(
        "table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="sortable wide stacked", id="classes"
    )
    at = results["metrics"]
    best, fixed = at["best"]["threshold"], at["fixed"]["threshold"]
    note = f"In %, at the best threshold ({best:g}) and the fixed one ({fixed:g})."
    absent = " A dash marks a class that is neither labelled nor predicted anywhere; it is left out of the mean."
    note += absent if any(each["iou_best"] is None for each in results["per_class"]) else ""
    return section("Classes", tag("p", note, class_="note"), tag("div", table, class_="scroll tall", tabindex=0))


def distribution(results: Results) -> Markup:
    """The share of labelled pixels and of predicted pixels per class.

    The background, often larger than all classes together, is given as text, without bars.
    """
    palette = colours_of(results)
    total = sum(each["label_pixels"] for each in results["per_class"]) or 1
    classes = [each for each in results["per_class"] if each["id"] != BACKGROUND]
    ranked = sorted(classes, key=lambda each: -each["label_pixels"])
    largest = max([each[kind] for each in ranked for kind in PIXEL_KINDS], default=1) or 1
    rows = [distribution_row(each, total, largest, palette) for each in ranked]
    key = (
        tag("li", tag("i", class_="block"), "labelled"),
        tag("li", tag("i", class_="outline"), "predicted, at the best threshold"),
    )
    background = [
        tag(
            "p",
            f"{percent(each['label_pixels'] / total, 2)} % of the labelled pixels are {each['name']}, and"
            f" {percent(each['predicted_pixels_best'] / total, 2)} % were predicted to be. The bars leave it out.",
            class_="note",
        )
        for each in results["per_class"]
        if each["id"] == BACKGROUND
    ]
    shown, rest = (tag("dl", *part, class_="distribution") for part in (rows[:SHOWN], rows[SHOWN:]))
    folded = [tag("details", tag("summary", f"{len(rows) - SHOWN} rarer classes"), rest)] if rows[SHOWN:] else []
    return section("Label distribution", *background, tag("ul", key, class_="key"), shown, *folded)


def distribution_row(each: Mapping[str, Any], total: int, largest: int, palette: Any) -> Markup:
    """A class's swatch, name, shares of all pixels, and two bars relative to the largest number of pixels."""
    labelled, predicted = (percent(each[kind] / total, 2) for kind in PIXEL_KINDS)
    bars = (tag("i", style=f"--share:{each[kind] / largest:.4f}") for kind in PIXEL_KINDS)
    return join(
        tag("dt", swatch(each["id"], palette), each["name"]),
        tag("dd", f"{labelled} / {predicted} %", class_="numbers soft"),
        tag("dd", *bars, class_="pair", aria_hidden="true"),
    )


def confusions(results: Results) -> Markup:
    """The classes with the most wrong pixels, and the most frequent confusions."""
    confusion = results["confusion"]
    if not confusion["pairs"]:
        return section("Confusion", tag("p", "No labelled pixel was predicted as another class.", class_="soft"))
    columns = (("true", "text"), ("predicted", "text"), ("pixels", None), ("of the true class", None))
    head = tag("tr", *(tag("th", name, scope="col", class_=kind) for name, kind in columns))
    rows = [
        tag(
            "tr",
            tag("td", each["true"], class_="text"),
            tag("td", each["predicted"], class_="text"),
            tag("td", f"{each['pixels']:,}"),
            tag("td", f"{percent(each['share'])} %"),
        )
        for each in confusion["pairs"]
    ]
    note = (
        f"The {len(confusion['classes'])} classes with the most wrong pixels, at the best threshold"
        f" ({confusion['threshold']:g}). A row shows as what the labelled pixels of a class were predicted, in %;"
        " the rest up to 100 went to classes that are not shown."
    )
    pairs = tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="scroll")
    return section(
        "Confusion",
        tag("p", note, class_="note"),
        confusion_table(confusion, colours_of(results)),
        tag("details", tag("summary", f"The {len(rows)} most frequent confusions"), pairs),
    )


def as_table(rows: list[Markup]) -> Markup:
    return tag("div", tag("table", tag("tbody", rows)), class_="scroll")


def pair(name: str, value: Any) -> Markup:
    return tag("tr", tag("th", name, scope="row"), tag("td", str(value), class_="text"))


def value_cell(label: str, share: float | None, *more: str) -> Markup:
    """A share that the table is sorted by; `label` stands before it where the table is stacked."""
    return tag("td", percent(share, 2), *more, data_value="" if share is None else share, data_label=label)


def number_cell(number: Mapping[str, Any], label: str) -> Markup:
    """A number with its interval; `label` stands before it where the table is stacked."""
    return tag("td", percent(number["value"], 2), " ", tag("small", interval(number["interval"])), data_label=label)
