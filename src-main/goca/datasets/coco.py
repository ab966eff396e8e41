"""COCO val2017 with two sets of classes: 80 things (COCO-Object), and 27 coarse things and stuff (COCO-Stuff)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goca.datasets.base import DatasetError, DatasetNotFound, SampleError, pixels
from goca.datasets.encodings import Encoding, by_value, label_values
from goca.datasets.folders import FolderDataset, Place
from goca.files.bounded_json import read_json

IMAGES = tuple(Place(folder, ".jpg", r"\d+") for folder in ("{list}", "images/{list}"))
THINGS = by_value(label_values("coco-object"))  # COCO's category ids: 1-90, of which ten are unused
OTHER_CATEGORIES = range(91, 201)  # stuff, in panoptic files
FINE = label_values("coco-stuff")  # of 0-181
UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}  # fine ids, counted from 0, that no image has


class CocoObjectDataset(FolderDataset):
    """80 things, from panoptic files or from PNGs of class ids."""

    tree = """\
    {list}/<id>.jpg (or images/{list}/)                        images
    annotations/panoptic_{list}/<id>.png                       segment ids R + 256 G + 65536 B, with
    annotations/panoptic_{list}.json                           what each segment is; or
    annotations/{list}/<id>_instanceTrainIds.png               0 background, 1-80 classes, or
                                                               255 background, 0-79 classes
                                                               (or instance_{list}/<id>.png)"""
    whole = True
    image_places = IMAGES
    label_places = (
        Place("annotations/panoptic_{list}", ".png", r"\d+", ("panoptic",)),
        Place("panoptic_{list}", ".png", r"\d+", ("panoptic",)),
        Place("annotations/panoptic_{list}/panoptic_{list}", ".png", r"\d+", ("panoptic",)),
        Place("annotations/{list}", "_instanceTrainIds.png", r"\d+", ("0-80", "categories", "0-79")),
        Place("annotations/instance_{list}", ".png", r"\d+", ("0-80", "categories", "0-79")),
        Place("instance_{list}", ".png", r"\d+", ("0-80", "categories", "0-79")),
    )
    encodings = (
        Encoding.of(
            "panoptic", "COCO panoptic, segment ids with a JSON file", THINGS | dict.fromkeys(OTHER_CATEGORIES, 0), [0]
        ),
        Encoding.of("0-80", "0 background, 1-80 classes", {value: value for value in range(81)}, [255], usual=[0]),
        Encoding.of("categories", "0 background, COCO's category ids 1-90", {0: 0} | THINGS, [255], usual=[0]),
        Encoding.of(
            "0-79", "0-79 classes, 255 background", {value: value + 1 for value in range(80)} | {255: 0}, usual=[255]
        ),
    )
    strays = {  # noqa: RUF012
        "annotations/panoptic_*.zip": "The archive holds another archive; unpack annotations/panoptic_val2017.zip",
        "annotations/instances_*.json": "There are only polygons (instances_*.json); get the panoptic annotations",
    }

    def values(self, path: Path) -> NDArray:
        """Read the category ids [H, W] of a panoptic file (0: none), or the numbers in a PNG. Raises SampleError."""
        if "panoptic" not in self.place.encodings:
            return super().values(path)
        listed = self._panoptic_json().name
        if (segments := self.segments.get(path.stem)) is None:
            raise SampleError(f"label {path.name} is not listed in {listed}")
        red, green, blue = np.moveaxis(pixels(path, modes=("RGB",)).astype(np.int32), -1, 0)
        table = np.zeros(2**24, np.uint8)  # category + 1 per segment id; only pages that are written take memory
        table[0] = 1
        for segment, category in segments:
            table[segment] = category + 1
        found = np.take(table, red + 256 * green + 65536 * blue)
        if not found.all():
            raise SampleError(f"label {path.name} holds segments that {listed} does not list for it")
        return found - np.uint8(1)

    @cached_property
    def segments(self) -> dict[str, list[tuple[int, int]]]:
        """Read the JSON file: image id -> its segments and their categories. Raises DatasetError."""
        path = self._panoptic_json()
        try:
            annotations = read_json(path)["annotations"]
            segments = {Path(each["file_name"]).stem: _segments(each) for each in annotations}
        except FileNotFoundError:
            raise DatasetNotFound(f"{path} is missing; it comes in the same archive as the PNGs next to it") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path} is not COCO's panoptic JSON ({type(error).__name__}: {error}); expected"
                ' {"annotations": [{"file_name": ..., "segments_info": [{"id": ..., "category_id": ...}]}]}'
            ) from None
        if len(segments) < len(annotations):
            raise DatasetError(f"{path} lists an image more than once; unpack it again")
        return segments

    def sources(self) -> list[Path]:
        return [self._panoptic_json()] if "panoptic" in self.place.encodings else []

    def _panoptic_json(self) -> Path:
        folder = self.folder / self.place.folder.format(list=self.listed)
        name = f"panoptic_{self.listed}.json"
        places = [folder.parent / name, folder.parent.parent / name, folder / name]
        return next((path for path in places if path.is_file()), places[0])


class CocoStuffDataset(FolderDataset):
    """27 coarse classes, from the 182 fine labels; whether these count from 0 or 1 is detected from the files."""

    tree = """\
    {list}/<id>.jpg (or images/{list}/)                        images
    stuffthingmaps/{list}/<id>.png (or annotations/{list}/)    fine labels 0-181 and 255, or 1-182 and 0"""
    image_places = IMAGES
    label_places = tuple(
        Place(folder, ".png", r"\d+", encodings=("0-181", "1-182"), sure=False)
        for folder in ("stuffthingmaps/{list}", "annotations/{list}", "stuffthingmaps_trainval2017/{list}", "{list}")
    )
    encodings = (
        Encoding.of("0-181", "fine labels counted from 0, 255 void", by_value(FINE), [255], unused=UNUSED),
        Encoding.of(
            "1-182",
            "fine labels counted from 1, 0 and 255 void",
            by_value(FINE, shift=1),
            [0, 255],
            unused=[value + 1 for value in UNUSED],
            unusual=[255],
        ),
    )
    strays = {  # noqa: RUF012
        "*/*/*_labelTrainIds.png": "There are labelTrainIds (171 classes), which do not hold the fine labels;"
        " unpack stuffthingmaps_trainval2017.zip again",
    }


def _segments(annotation: dict[str, Any]) -> list[tuple[int, int]]:
    pairs = [(int(each["id"]), int(each["category_id"])) for each in annotation["segments_info"]]
    if wrong := next(((s, c) for s, c in pairs if not (0 < s < 2**24 and 0 < c < OTHER_CATEGORIES.stop)), None):
        raise ValueError(f"segment {wrong[0]} of {annotation['file_name']} has the category {wrong[1]}")
    return pairs
