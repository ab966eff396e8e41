"""Plain PNGs: label maps of class ids, and each class cut out of its image."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from goca.drawing.legend import mask_on
from goca.files.atomic import write_png, write_text
from goca.formats.item import Classes, Labelled, check


def write_masks(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """NAME.png with class ids as grey values, 0 background, 255 void; classes.json: {id: name}."""
    files = []
    for item in items:
        label = item.read_label()
        check(label, item, classes)
        files.append(write_png(folder / f"{item.name}.png", Image.fromarray(label)))
    return [*files, write_names(folder, classes)]


def write_cutouts(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """NAME-ID.png for each present class: the image where the class is, transparent elsewhere (RGBA); classes.json."""
    files = []
    for item in items:
        label, image = item.read_label(), item.read_image()
        if (image.height, image.width) != label.shape:
            image = image.resize((label.shape[1], label.shape[0]))
        for class_id in check(label, item, classes):
            files.append(write_png(folder / f"{item.name}-{class_id}.png", mask_on(image, label == class_id)))
    return [*files, write_names(folder, classes)]


def write_names(folder: Path, classes: Classes) -> Path:
    """classes.json: {id: name}"""
    table = {str(class_id): classes[class_id] for class_id in sorted(classes)}
    return write_text(folder / "classes.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
