"""Write finished label maps in the chosen formats, with metadata and the review page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from goca.files.atomic import write_text
from goca.formats import FORMATS, Labelled
from goca.labelsets.classtable import write_table
from goca.labelsets.plan import is_validation
from goca.labelsets.review import write_review
from goca.labelsets.store import Store


def labelled(
    store: Store, names: Sequence[str], image_of: Callable[[str], Path], validation: float = 0.0
) -> list[Labelled]:
    """The finished images among the names, in order, without dropped and skipped ones.

    validation  share of the images whose split is "val", 0..1
    """
    records = store.records()
    return [
        Labelled(
            name,
            partial(store.label, name),
            image_of(name),
            "val" if is_validation(name, validation) else "train",
            records[name],
        )
        for name in names
        if name in records and not records[name].get("dropped") and "skipped" not in records[name]
    ]


def export(
    store: Store,
    items: Sequence[Labelled],
    names: Sequence[str],
    classes: Mapping[int, str],
    formats: Sequence[str],
    settings: Mapping[str, Any],
    review: int = 500,
) -> None:
    """Write classes.json, metadata.json, review.html, and a folder per format."""
    records, splits = store.records(), {item.name: item.split for item in items}
    images = [{**records[name], "split": splits.get(name)} for name in names if name in records]
    content = {"settings": dict(settings), "images": images}
    write_table(store.folder, dict(classes))
    write_text(store.folder / "metadata.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_review(store.folder / "review.html", items, classes, review)
    for name in formats:
        FORMATS[name](store.folder / name, items, classes)
