"""YOLO's segmentation labels: a line per polygon, coordinates as fractions of the image."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from goca.files.atomic import write_text
from goca.formats.item import Classes, Labelled, regions
from goca.formats.polygons import outlines


def write_yolo(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """images/SPLIT/, labels/SPLIT/NAME.txt and data.yaml. YOLO counts classes from 0: the table's order by id."""
    numbers = {class_id: number for number, class_id in enumerate(sorted(classes))}
    files, splits = [], []
    for item in items:
        label = item.read_label()
        files.append(item.copy_image(folder / "images" / item.split))
        size = [label.shape[1], label.shape[0]]
        lines = [
            f"{numbers[class_id]} " + " ".join(f"{each:.6f}" for each in (ring / size).ravel()) + "\n"
            for class_id, mask in regions(label, item, classes)
            for ring in outlines(mask)
        ]
        files.append(write_text(folder / "labels" / item.split / f"{item.name}.txt", "".join(lines)))
        splits.append(item.split)
    places = [f"{split}: images/{split}\n" for split in dict.fromkeys(splits)]
    names = [f"  {numbers[each]}: {json.dumps(classes[each], ensure_ascii=False)}\n" for each in sorted(classes)]
    files.append(write_text(folder / "data.yaml", "".join(["path: .\n", *places, "names:\n", *names])))
    return files
