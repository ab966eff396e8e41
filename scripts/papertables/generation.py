"""The generation experiment's table: scores written by evaluate.py, next to the paper's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from goca.files.bounded_json import read_json

from papertables.formats import latex, markdown
from papertables.tables import NOT_RUN

Place = tuple[str, float, str]  # model, guidance scale, method


def generation_table(definition: Mapping[str, Any], runs: Path) -> dict[str, str]:
    """Make the table in every format: file suffix -> text.

    definition  configs/tables/generation.yaml
    runs        folder of scores.json files; of two for the same cell, the one with more images counts
    """
    found = collected(runs)
    rows = list(places(definition, found))
    titles = definition["scores"]
    heads = ["model", "scale", "method", *(f"{title}, paper" for title in titles.values()), *titles.values(), "images"]
    lines = [line(definition, place, found.get(place)) for place in rows]
    notes = [*origins(found), *definition["notes"]]
    if missing := sum(place not in found for place in rows):
        notes.insert(0, f'{missing} of the runs are "{NOT_RUN}".')
    content = heads, lines, notes
    return {"md": markdown(*content), "csv": comma_separated(heads, lines), "tex": latex(*content)}


def collected(runs: Path) -> dict[Place, dict[str, Any]]:
    """Read the scores of evaluate.py by model, scale and method."""
    found: dict[Place, dict[str, Any]] = {}
    for file in sorted(runs.rglob("scores.json")):
        scores = read_json(file)
        made = scores.get("generated") if isinstance(scores, dict) else None
        if not isinstance(made, dict) or not {"model", "guidance_scale", "method"} <= set(made):
            continue  # scores of images that were not generated here
        place = made["model"], float(made["guidance_scale"]), made["method"]
        if place not in found or scores["images"] > found[place]["images"]:
            found[place] = scores
    return found


def places(definition: Mapping[str, Any], found: Mapping[Place, Any]) -> Iterator[Place]:
    """The rows of the definition, then all other scores."""
    own = [
        (model, float(scale), method)
        for model in definition["models"]
        for scale in definition["scales"]
        for method in definition["methods"]
    ]
    yield from [*own, *sorted(set(found) - set(own))]


def line(definition: Mapping[str, Any], place: Place, scores: Mapping[str, Any] | None) -> list[str]:
    model, scale, method = place
    figures = definition["figures"].get(model, {}).get(scale, {}).get(method, {})
    ours = scores["scores"] if scores else {}
    return [
        model,
        f"{scale:g}",
        definition["methods"].get(method, method),
        *(f"{figures[name]:g}" if name in figures else "" for name in definition["scores"]),
        *(f"{ours[name]:.2f}" if name in ours else "" if scores else NOT_RUN for name in definition["scores"]),
        str(scores["images"]) if scores else "",
    ]


def origins(found: Mapping[Place, Mapping[str, Any]]) -> list[str]:
    """How scores were computed: scores computed differently cannot be compared."""
    kinds = ("distance", "clip")
    made = {kind: {json.dumps(each[kind], sort_keys=True) for each in found.values() if kind in each} for kind in kinds}
    return [f"{kind}: {'; '.join(sorted(each))}." for kind, each in made.items() if each]


def comma_separated(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heads, *lines])
    return out.getvalue()
