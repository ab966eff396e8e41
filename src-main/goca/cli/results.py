"""The files that `goca segment` writes for an image: overlay, label map, masks and a JSON record.

Their names are made safe: they cannot leave the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from torch import Tensor

from goca.cli.colours import swatch
from goca.drawing.legend import Entry, painted, with_legend
from goca.drawing.palettes import as_hex
from goca.errors import GocaError
from goca.files.atomic import write_png, write_text
from goca.files.bounded_json import read_json
from goca.files.names import distinct, file_name
from goca.segmentation import BACKGROUND, Segmentation, label_image

SHOWN = 20  # up to this number, classes without a pixel are listed too


class OutputsClash(GocaError, ValueError):
    """A result that would overwrite an input image."""


@dataclass(frozen=True)
class Places:
    """Where the results of one image go."""

    folder: Path
    stem: str

    @property
    def overlay(self) -> Path:
        return self.folder / f"{self.stem}-overlay.png"

    @property
    def labels(self) -> Path:
        return self.folder / f"{self.stem}-labels.png"

    @property
    def masks(self) -> Path:
        return self.folder / f"{self.stem}-masks"

    @property
    def scores(self) -> Path:
        return self.folder / f"{self.stem}-scores.npy"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.stem}.json"


def places_of(images: Sequence[Path], folder: Path) -> list[Places]:
    """The output paths of each image, all different. Raises OutputsClash if one would overwrite an input image."""
    found = [Places(folder, stem) for stem in distinct(path.stem for path in images)]
    inputs = {path.resolve() for path in images}
    for place, path in zip(found, images):
        for file in (place.overlay, place.labels, place.record):
            if file.resolve() in inputs:
                raise OutputsClash(f"{file}, a result of {path}, would overwrite an image; choose another --out folder")
    return found


def write(
    place: Places, image: Image.Image, segmentation: Segmentation, label: Tensor, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all results of an image, the overlay first; returns the JSON record. Each file is written atomically.

    Masks in an earlier record of the image that this one does not list are removed.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    colours = segmentation.colours()
    write_png(place.overlay, with_legend(painted(image, label.numpy(), colours), entries(segmentation, label)))
    write_png(place.labels, label_image(label))
    masks, names = segmentation.masks(label), segmentation.classes()
    files = {class_id: f"{name}.png" for class_id, name in zip(masks, distinct(names[each] for each in masks))}
    before = masks_before(place)
    place.masks.mkdir(exist_ok=True)
    for class_id, mask in masks.items():
        write_png(place.masks / files[class_id], Image.fromarray(mask.numpy()))
    classes = [
        {**row, "colour": as_hex(colours[row["id"]]), "mask": files[row["id"]]} for row in segmentation.summary(label)
    ]
    whole = {**record, "classes": classes}
    write_text(place.record, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for file in before - set(files.values()):
        (place.masks / file).unlink(missing_ok=True)
    return whole


def entries(segmentation: Segmentation, label: Tensor) -> list[Entry]:
    """The legend; with more than SHOWN classes, only those that have a pixel."""
    found = segmentation.legend(label)
    return found if len(found) <= SHOWN else [entry for entry in found if entry.share > 0]


def table(segmentation: Segmentation, label: Tensor, stream: TextIO) -> list[str]:
    """A line per class for the terminal: its colour, name, area, mean score and presence.

    stream  where the lines will be printed; colour codes are added only if it shows them

    With more than SHOWN classes, those without a pixel are only counted.
    """
    rows = segmentation.summary(label)
    shown = rows if len(rows) <= SHOWN else [row for row in rows if row["area"] > 0]
    width = max((len(row["name"]) for row in shown), default=0)
    colours = segmentation.colours()
    lines = []
    for row in shown:
        mean = "     -" if row["mean_score"] is None else f"{row['mean_score']:6.2f}"
        there = f"   presence {row['presence']:4.2f}" if "presence" in row else ""
        mark = swatch(None if row["id"] == BACKGROUND else colours[row["id"]], stream)
        lines.append(f"  {mark}{row['name']:<{width}}  {row['area']:6.1%} of the image   mean score {mean}{there}")
    if rest := len(rows) - len(shown):
        lines.append(f"  and {rest} classes without a pixel")
    return lines


def masks_before(place: Places) -> set[str]:
    """The mask files that an earlier record of the same image lists."""
    try:
        listed = {each["mask"] for each in read_json(place.record)["classes"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    return {file for file in listed if isinstance(file, str) and file == f"{file_name(Path(file).stem)}.png"}
