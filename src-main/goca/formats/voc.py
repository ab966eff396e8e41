"""PASCAL VOC's folders: palette PNGs, XML with boxes, lists of the splits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from goca.drawing.palettes import palette_image
from goca.files.atomic import write_png, write_text
from goca.formats.item import Classes, Labelled, regions


def write_voc(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """JPEGImages/, SegmentationClass/, Annotations/, ImageSets/Segmentation/SPLIT.txt, and classes.json for GoCA."""
    files: list[Path] = []
    splits: dict[str, list[str]] = {}
    for item in items:
        label = item.read_label()
        image = item.copy_image(folder / "JPEGImages")
        files.append(image)
        files.append(write_png(folder / "SegmentationClass" / f"{item.name}.png", palette_image(label)))
        tree = annotation(image.name, label, item, classes)
        ElementTree.indent(tree)
        text = ElementTree.tostring(tree, encoding="unicode") + "\n"
        files.append(write_text(folder / "Annotations" / f"{item.name}.xml", text))
        splits.setdefault(item.split, []).append(item.name)
    for split, names in splits.items():
        listed = "".join(f"{name}\n" for name in names)
        files.append(write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", listed))
    table = [
        [classes[each]] if each in classes else [f"unused {each}"] for each in range(1, max(classes, default=0) + 1)
    ]
    files.append(write_text(folder / "classes.json", json.dumps([[], *table], indent=1, ensure_ascii=False) + "\n"))
    return files


def annotation(file: str, label: np.ndarray, item: Labelled, classes: Classes) -> ElementTree.Element:
    """File, size, and per connected region its name and box (1-based, inclusive, as VOC counts)."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", label.shape[1]), ("height", label.shape[0]), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for class_id, mask in regions(label, item, classes):
        rows, columns = np.nonzero(mask)
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = classes[class_id]
        box = ElementTree.SubElement(thing, "bndbox")
        sides = {"xmin": columns.min(), "ymin": rows.min(), "xmax": columns.max(), "ymax": rows.max()}
        for tag, value in sides.items():
            ElementTree.SubElement(box, tag).text = str(int(value) + 1)
    return root
