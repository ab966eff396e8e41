"""PASCAL-Context on VOC 2010's images: 59 classes, from LabelMap .mat files or from PNGs of 60 values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from goca.datasets.base import DatasetConfig, DatasetError, DatasetNotFound, SampleError, class_table
from goca.datasets.encodings import Encoding, label_values
from goca.datasets.folders import FolderDataset, Place, read_list
from goca.files.text import read_text

RAW = [row[0] for row in label_values("context")]  # raw id per class id
RAW_CLASSES = 459  # all other raw ids, 0 and `unknown` among them, are background
OBJECT_NAMES = {"diningtable": "table"}  # VOC's name of a class -> Context's; the other nineteen are the same
OWN_ORDER = "59_labels.txt"  # next to 59_context_labels/: the class of each value


class ContextDataset(FolderDataset):
    """PASCAL-Context. Pixels of the 400 rarer classes are background, as in the usual 60-class evaluation."""

    tree = """\
    JPEGImages/<id>.jpg                       images
    trainval/<id>.mat                         LabelMap with raw ids 0-459, or
    SegmentationClassContext/<id>.png         0 background, 1-59 classes in the order of their raw ids, or
    59_context_labels/<id>.png                0 background, 1-59 classes in the order of 59_labels.txt
    ImageSets/{list}.txt                      one id per line"""
    image_places = (Place("JPEGImages", ".jpg"),)
    label_places = (
        Place("trainval", ".mat", encodings=("raw",)),
        Place("SegmentationClassContext", ".png", encodings=("60-sorted", "60-listed")),
        Place("59_context_labels", ".png", encodings=(OWN_ORDER,)),
    )
    encodings: tuple[Encoding, ...] = (
        Encoding.of(
            "raw", "raw ids 0-459", dict.fromkeys(range(RAW_CLASSES + 1), 0) | {raw: i for i, raw in enumerate(RAW)}
        ),
        Encoding.of("60-sorted", "0-59, in the order of the raw ids", dict(enumerate(map(RAW.index, sorted(RAW))))),
        Encoding.of("60-listed", "0-59, in the order of this project's class table", dict(enumerate(range(60)))),
    )

    def __init__(self, config: DatasetConfig) -> None:
        if config.root and (order := config.folder(self.tree) / OWN_ORDER).is_file():
            classes = _named_order(order, class_table(config.classes, order.parent))
            self.encodings = (*self.encodings, Encoding.of(OWN_ORDER, f"0-59, in the order of {OWN_ORDER}", classes))
        super().__init__(config)

    def values(self, path: Path) -> NDArray:
        """Read the raw ids [H, W] of a .mat file, or the numbers in a PNG. Raises SampleError."""
        return _label_map(path) if path.suffix == ".mat" else super().values(path)

    @cached_property
    def encoding(self) -> Encoding:
        """Like every folder, but VOC's annotations, if they are there, decide the class order of 60-class PNGs."""
        possible = self._possible()
        if len(possible) < 2:
            return super().encoding
        hits = [0] * len(possible)  # annotated objects that are in the labels
        for objects, values in self._annotated():
            for index, each in enumerate(possible):
                hits[index] += len(objects & {int(each.table[value]) for value in values})
        best = hits.index(max(hits))
        return possible[best] if hits.count(hits[best]) == 1 else super().encoding

    def sources(self) -> list[Path]:
        return [self.folder / OWN_ORDER] if OWN_ORDER in self.place.encodings else []

    def _annotated(self) -> Iterator[tuple[set[int], list[int]]]:
        """For some images, the classes that VOC's XML names and the values in the label."""
        ids = {names[0]: class_id for class_id, names in enumerate(self.class_names) if names}
        for path, values in self._looked_at():
            try:
                tree = ElementTree.parse(self.folder / "Annotations" / f"{path.stem}.xml")
            except (ElementTree.ParseError, OSError, ValueError, LookupError):
                continue
            names = (each.findtext("name", "").strip() for each in tree.iter("object"))
            yield {ids[name] for name in (OBJECT_NAMES.get(name, name) for name in names) if name in ids}, [*values]

    def _ids(self) -> list[str]:
        """Read the ids of the list, in ImageSets/ or in the root."""
        name = f"{self.listed}.txt"
        places = [
            self.folder / "ImageSets" / name,
            self.folder / "ImageSets/Segmentation" / name,
            self.folder / name,
            self.folder / Path(name).name,
        ]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            known = sorted((self.folder / "ImageSets").glob("Seg*/*.txt"))
            lists = ", ".join(f"{found.parent.name}/{found.stem}" for found in known) or "none"
            raise DatasetNotFound(f"dataset.split={self.config.split}: {places[0]} is missing; lists there: {lists}")
        return read_list(path)


def _label_map(path: Path) -> NDArray:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            label = loadmat(file, variable_names=["LabelMap"]).get("LabelMap")
    except FileNotFoundError:
        raise SampleError(f"label {path.name} is missing") from None
    except Exception as error:  # by zlib, scipy's parser or numpy: damaged files fail in many ways
        raise SampleError(f"label {path.name} cannot be read: {type(error).__name__}: {error}") from None
    if label is None:
        raise SampleError(f"label {path.name} has no variable LabelMap")
    if label.ndim != 2 or not label.size or label.dtype.kind not in "uif":
        raise SampleError(f"label {path.name}: LabelMap is {label.dtype} {list(label.shape)}; expected ids [H, W]")
    if label.dtype not in (np.uint8, np.uint16):
        whole = np.clip(label, 0, 2**16 - 1).astype(np.uint16)
        if not (whole == label).all():
            raise SampleError(f"label {path.name}: LabelMap holds numbers that are not ids")
        return whole
    return label


def _named_order(path: Path, class_names: list[list[str]]) -> dict[int, int]:
    """Read value -> class id from lines such as `1: aeroplane`. Raises DatasetError if they are not the 59 classes."""
    try:
        lines = re.findall(r"^\s*(\d+)\s*:\s*(.+?)\s*$", read_text(path), re.MULTILINE)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text: {error}; expected lines such as 1: aeroplane") from None
    ids = {name: class_id for class_id, names in enumerate(class_names) for name in names}
    classes = {int(value): ids.get(name.lower(), 0) for value, name in lines}
    if sorted(classes) != list(range(1, 60)) or sorted(classes.values()) != list(range(1, 60)):
        unknown = [name for _, name in lines if name.lower() not in ids]
        raise DatasetError(f"{path} does not name the 59 classes, one `1: aeroplane` a line; unknown: {unknown[:5]}")
    return {0: 0} | classes
