"""labelme's JSON: a file of polygons next to each image, for manual correction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from goca.files.atomic import write_text
from goca.formats.item import Classes, Labelled, regions
from goca.formats.polygons import outlines

VERSION = "5.5.0"  # of labelme, whose fields these are


def write_labelme(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """NAME.json and the image, both in the folder; labels.txt lists the class names."""
    files = []
    for item in items:
        label = item.read_label()
        image = item.copy_image(folder)
        shapes = [
            {
                "label": classes[class_id],
                "points": ring.round(2).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for class_id, mask in regions(label, item, classes)
            for ring in outlines(mask)
        ]
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name,
            "imageData": None,
            "imageHeight": label.shape[0],
            "imageWidth": label.shape[1],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        files += [image, write_text(folder / f"{item.name}.json", text)]
    listed = "".join(f"{classes[each]}\n" for each in sorted(classes))
    files.append(write_text(folder / "labels.txt", listed))
    return files
