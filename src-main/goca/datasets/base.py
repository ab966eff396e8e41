"""What every benchmark gives: ids in the published order, and for each the picture, its label map and its classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from goca.embedded import resolve

VOID = 255  # in every label map: not to be counted, or background; the protocol's switch `void` says which
TABLES = Path(__file__).parent / "classes"


class DatasetError(ValueError):
    """A data set that is configured or laid out in a way that cannot be read; the message says what is expected."""


class DatasetNotFound(DatasetError, FileNotFoundError):
    """A folder or list that is missing; the message shows the expected tree."""


class SampleError(ValueError):
    """One picture, label map or annotation that cannot be used; a run records the reason and goes on."""


@dataclass(frozen=True)
class DatasetConfig:
    """The fields of configs/dataset/*.yaml."""

    name: str
    reader: str
    root: str | None = None  # a folder, or "goca:NAME" for what is embedded
    split: str = "train"
    reverse: bool = False  # visit the list from its end, as the released evaluation does
    classes: str = ""  # a packaged table (voc, ...) or a .json file in the root: names per class id, [] for background
    labels: str | None = None  # captions: image file name -> {"caption": ...}
    add_background: bool = False  # append ", background" to the caption
    add_missing: bool = False  # append present classes that the caption does not name
    background: str = "offset"  # how class 0 scores: goca.evaluation.decision
    thresholds: Sequence[float] = field(default_factory=lambda: [t / 10 for t in range(-4, 5)])

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> DatasetConfig:
        """From a mapping. Raises DatasetError for fields that are unknown or missing."""
        known = [each.name for each in dataclasses.fields(cls)]
        if unknown := [str(key) for key in fields if key not in known]:
            raise DatasetError(f"dataset has no field {', '.join(unknown)}; fields: {', '.join(known)}")
        if missing := [key for key in ("name", "reader") if not fields.get(key)]:
            raise DatasetError(f"dataset.{missing[0]} is not set; see configs/dataset for examples")
        return cls(**{str(key): value for key, value in fields.items()})

    def folder(self, tree: str) -> Path:
        """The root as a folder that exists. Raises DatasetNotFound with the expected tree."""
        if not self.root:
            raise DatasetNotFound(f"dataset.root is not set; give the folder of {self.name!r}, which holds\n{tree}")
        try:
            folder = Path(resolve(self.root)).expanduser()
        except FileNotFoundError as error:
            raise DatasetNotFound(f"dataset.root={self.root}: {error}") from None
        if not folder.is_dir():
            raise DatasetNotFound(f"dataset.root={self.root} is no folder; {self.name!r} expects one with\n{tree}")
        return folder


@dataclass
class Sample:
    """One picture with its truth; files are opened when they are first asked for.

    id, name  the id in the split's list; the image's file name, under which labels and annotations know it
    present   ids of the classes that are in the picture, ascending, without background
    """

    id: str
    image_path: Path
    label_path: Path
    present: list[int]

    @property
    def name(self) -> str:
        return self.image_path.name

    @cached_property
    def image(self) -> Image.Image:
        """The picture, decoded, in the mode of its file. Raises SampleError if it cannot be read."""
        return _opened(self.image_path, "image")

    @cached_property
    def label(self) -> NDArray[np.uint8]:
        """Class ids [H, W], VOID where there is none. Raises SampleError if it cannot be read or does not fit."""
        found = _opened(self.label_path, "label")
        if found.mode not in ("P", "L"):
            raise SampleError(f"label {self.label_path.name} has mode {found.mode}; expected an id per pixel (P, L)")
        if found.size != self.image.size:
            sizes = "the image is {}x{}, its label {}x{}".format(*self.image.size, *found.size)
            raise SampleError(f"{sizes}; they must agree")
        return np.array(found)


class Dataset(Protocol):
    """A benchmark, ready to be read. `class_names[i]` are the names that a caption may use for class i; 0 has none."""

    name: str
    class_names: list[list[str]]
    ids: list[str]

    def sample(self, image_id: str) -> Sample:
        """The picture of that id. Raises SampleError if what says its classes cannot be read."""
        ...


def class_label(class_names: Sequence[Sequence[str]], class_id: int) -> str:
    """How a class is called in tables: its first name; class 0 is the background."""
    names = class_names[class_id]
    return names[0] if names else ("background" if class_id == 0 else f"class {class_id}")


def class_table(classes: str, root: Path) -> list[list[str]]:
    """Names per class id, from the packaged table of that name or a .json file in the root."""
    path = root / classes if classes.endswith(".json") else TABLES / f"{classes}.json"
    if not path.is_file():
        known = ", ".join(sorted(table.stem for table in TABLES.glob("*.json")))
        raise DatasetError(f"dataset.classes={classes!r}: no such table; there are: {known}; or a .json in the root")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
    if not isinstance(table, list) or len(table) < 2 or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in table
    ):
        raise DatasetError(f"{path}: expected a list with a list of names per class id, [] for background")
    return table


def _opened(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise SampleError(f"{what} {path.name} is missing") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise SampleError(f"{what} {path.name} cannot be read: {error}") from None
