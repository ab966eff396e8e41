"""What `goca segment` leaves of a picture: label map, overlay, masks and a JSON record, under names that cannot leave
their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from goca.drawing.palettes import as_hex, overlay, voc_palette
from goca.errors import GocaError
from goca.files.atomic import write_png, write_text
from goca.files.bounded_json import read_json
from goca.files.names import distinct, file_name
from goca.segmentation import Segmentation, label_image


class OutputsClash(GocaError, ValueError):
    """A result that would be written over a picture that is to be read."""


@dataclass(frozen=True)
class Places:
    """Where the results of one picture go."""

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
    def record(self) -> Path:
        return self.folder / f"{self.stem}.json"


def places_of(pictures: Sequence[Path], folder: Path) -> list[Places]:
    """One set of places per picture, no two alike. Raises OutputsClash where a result would replace a picture."""
    found = [Places(folder, stem) for stem in distinct(path.stem for path in pictures)]
    inputs = {path.resolve() for path in pictures}
    for place, path in zip(found, pictures):
        for file in (place.overlay, place.labels, place.record):
            if file.resolve() in inputs:
                raise OutputsClash(f"the result {file} of {path} would replace a picture; choose another --out folder")
    return found


def write(
    place: Places, picture: Image.Image, segmentation: Segmentation, label: Tensor, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all results of a picture, the overlay first; returns the JSON record. Each file is there whole or not.

    Masks that an earlier record lists and this one does not are removed.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    write_png(place.overlay, overlay(picture, label))
    write_png(place.labels, label_image(label))
    masks, names = segmentation.masks(label), segmentation.classes()
    files = {class_id: f"{name}.png" for class_id, name in zip(masks, distinct(names[each] for each in masks))}
    before = masks_before(place)
    place.masks.mkdir(exist_ok=True)
    for class_id, mask in masks.items():
        write_png(place.masks / files[class_id], Image.fromarray(mask.numpy()))
    colours = voc_palette()
    classes = [
        {**row, "colour": as_hex(colours[row["id"]]), "mask": files[row["id"]]} for row in segmentation.summary(label)
    ]
    whole = {**record, "classes": classes}
    write_text(place.record, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for file in before - set(files.values()):
        (place.masks / file).unlink(missing_ok=True)
    return whole


def masks_before(place: Places) -> set[str]:
    """The mask files that an earlier record of the same picture lists."""
    try:
        listed = {each["mask"] for each in read_json(place.record)["classes"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    return {file for file in listed if isinstance(file, str) and file == f"{file_name(Path(file).stem)}.png"}
