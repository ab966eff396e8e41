"""COCO's instances.json, masks as run lengths (RLE) or polygons, by pycocotools."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from goca.files.atomic import write_text
from goca.formats.item import Classes, FormatMissing, Labelled, regions
from goca.formats.polygons import outlines


def write_coco(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """images/, annotations/instances_SPLIT.json with RLE; one annotation per connected region."""
    return write(folder, items, classes, rle)


def write_coco_polygons(folder: Path, items: Iterable[Labelled], classes: Classes) -> list[Path]:
    """`write_coco` with polygons, which labelling tools can edit; regions too small for an outline are left out."""
    return write(folder, items, classes, polygons)


def write(
    folder: Path, items: Iterable[Labelled], classes: Classes, outline: Callable[[np.ndarray], Any]
) -> list[Path]:
    library()  # before anything is written
    categories = [{"id": class_id, "name": name, "supercategory": ""} for class_id, name in sorted(classes.items())]
    splits: dict[str, dict[str, Any]] = {}
    files = []
    for number, item in enumerate(items, start=1):
        own = splits.setdefault(item.split, {"images": [], "annotations": [], "categories": categories})
        label = item.read_label()
        image = item.copy_image(folder / "images")
        files.append(image)
        height, width = label.shape
        own["images"].append({"id": number, "file_name": image.name, "width": width, "height": height})
        for class_id, mask in regions(label, item, classes):
            if segmentation := outline(mask):
                annotation = {
                    "id": len(own["annotations"]) + 1,
                    "image_id": number,
                    "category_id": class_id,
                    "segmentation": segmentation,
                    **measures(mask),
                    "iscrowd": 0,
                }
                own["annotations"].append(annotation)
    for split, content in splits.items():
        path = folder / "annotations" / f"instances_{split}.json"
        files.append(write_text(path, json.dumps(content, ensure_ascii=False) + "\n"))
    return files


def measures(mask: np.ndarray) -> dict[str, Any]:
    """Area in pixels, and the box [x, y, width, height]."""
    coded = encoded(mask)
    return {"area": int(library().area(coded)), "bbox": [float(each) for each in library().toBbox(coded)]}


def encoded(mask: np.ndarray) -> Any:
    return library().encode(np.asfortranarray(mask.astype(np.uint8)))


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths, as text."""
    coded = encoded(mask)
    return {"size": [int(each) for each in coded["size"]], "counts": coded["counts"].decode("ascii")}


def polygons(mask: np.ndarray) -> list[list[float]]:
    """[x1, y1, x2, y2, ...] per outline."""
    return [[round(float(each), 2) for each in ring.ravel()] for ring in outlines(mask)]


def library() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise FormatMissing('the format coco needs pycocotools: pip install "goca[formats]"') from None
    return mask
