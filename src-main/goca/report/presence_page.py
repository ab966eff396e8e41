"""The report's section on presence: how well present words were told apart from absent ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goca.drawing.palettes import Array
from goca.report.charts import colours_of, interval, percent, reliability, swatch
from goca.report.markup import Markup, section, tag

MEANING = {
    "precision": "precision: share of the words predicted present that are",
    "recall": "recall: share of the present classes that were predicted",
    "auc": "AUC: how often a present word scores above an absent one",
}
COLUMNS = ("class", "looked for", "taken", "present", "both")


def presence(results: Mapping[str, Any]) -> Markup | None:
    """Precision, recall and AUC with intervals, the reliability curve, and counts per class.

    None where the run was given the present classes.
    """
    if (found := results.get("presence")) is None:
        return None
    figures = [
        tag(
            "div",
            tag("dt", meaning),
            tag("dd", percent(found[name]["value"]), tag("small", " %"), class_="value"),
            tag("dd", interval(found[name]["interval"], "95 % interval "), class_="interval"),
            class_="figure",
        )
        for name, meaning in MEANING.items()
        if found[name]["value"] is not None
    ]
    words = found["words"]
    note = (
        f"{words['offered']:,} words were looked for in {found['bootstrap']['images']:,} images, and"
        f" {words['taken']:,} of them were predicted present. By the ground truth {words['present']:,} classes are"
        f" present, of which {words['right']:,} were found."
    )
    return section(
        "Presence",
        tag("dl", figures, class_="figures"),
        tag("p", note, class_="note"),
        *curve(found["reliability"]),
        per_class(found["per_class"], colours_of(results)),
    )


def curve(bins: list[dict[str, Any]] | None) -> list[Markup]:
    """The reliability curve, if words have a presence score."""
    if bins is None or not any(each["words"] for each in bins):
        return []
    key = (
        tag("li", tag("i"), "share of the words that is present, %"),
        tag("li", tag("i", class_="b"), "a calibrated presence"),
    )
    shown = ", ".join(
        f"{percent(each['present'], 0)} of those around {percent(each['mean_presence'], 0)}"
        for each in bins
        if each["words"]
    )
    chart = reliability(bins, f"How many words are present, in %, by their presence: {shown}")
    return [tag("h3", "Reliability of presence"), tag("ul", key, class_="key"), chart]


def per_class(classes: list[dict[str, Any]], palette: Array) -> Markup:
    """In how many images each class was looked for, predicted and present."""
    head = tag("tr", *(tag("th", name, scope="col") for name in COLUMNS))
    rows = [
        tag(
            "tr",
            tag("th", swatch(each["id"], palette), each["name"], scope="row"),
            *(tag("td", f"{each[key]:,}") for key in ("offered", "taken", "present", "right")),
        )
        for each in classes
    ]
    table = tag("table", tag("thead", head), tag("tbody", rows))
    return tag("details", tag("summary", "Images by class"), tag("div", table, class_="scroll"))
