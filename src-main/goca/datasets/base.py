"""The interface of every benchmark: ids in the published order, and for each id the image, label map and classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from diffusion_feature.images import (
    UPRIGHT,
    ImageUnreadable,
    open_image,
    orientation,
    turned_upright,
    without_orientation,
)
from numpy.typing import NDArray
from PIL import Image

from goca.embedded import resolve
from goca.errors import GocaError
from goca.files.bounded_json import read_json
from goca.schema import Different, Filled, OneOf, Text, Threshold, check

VOID = 255  # in every label map: ignored, or background, by the protocol's switch `void`
CODE = np.array([1 << 16, 1 << 8, 1])  # packs red, green, blue into one number
TABLES = Path(__file__).parent / "classes"


class DatasetError(GocaError, ValueError):
    """A data set whose config or folder layout cannot be used; the message says what is expected."""


class DatasetNotFound(DatasetError, FileNotFoundError):
    """A folder or list is missing; the message shows the expected tree."""


class SampleError(GocaError, ValueError):
    """One image, label map or annotation cannot be used; a run records the reason and continues."""


def readers() -> list[str]:
    """The names of the readers."""
    from goca.datasets import READERS

    return list(READERS)


def background_rules() -> list[str]:
    from goca.evaluation.decision import BACKGROUND_RULES

    return list(BACKGROUND_RULES)


@dataclass(frozen=True)
class DatasetConfig:
    """The fields of configs/dataset/*.yaml."""

    name: Text
    reader: Annotated[str, OneOf(readers)]
    root: Text | None = None  # a folder, or "goca:NAME" for what is embedded
    split: Text = "train"  # a key of `splits`, or the name of a list in the data set
    splits: Mapping[str, Text] = field(default_factory=dict)  # use -> name of the list: published, clean
    images: Mapping[str, int | Sequence[int]] = field(default_factory=dict)  # list -> its number of images
    encoding: Text = "auto"  # what the numbers in label files mean; auto: detected from the files
    reverse: bool = False  # read the list from its end, as the released evaluation does
    classes: str = ""  # a packaged table (voc, ...) or a .json file in the root: names per class id, [] for background
    labels: Text | None = None  # captions: image file name -> {"caption": ...}
    add_background: bool = False  # append ", background" to the caption
    add_missing: bool = False  # append present classes that the caption does not name
    background: Annotated[str, OneOf(background_rules)] = "offset"  # how class 0 scores: goca.evaluation.decision
    thresholds: Annotated[Sequence[Threshold], Filled(), Different()] = field(
        default_factory=lambda: [t / 10 for t in range(-4, 5)]
    )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> DatasetConfig:
        """From a mapping. Raises DatasetError for fields that are unknown, missing or of the wrong type."""
        if isinstance(fields, Mapping):
            unset = next((name for name in ("name", "reader") if fields.get(name) in (None, "")), None)
            if unset:
                raise DatasetError(f"dataset.{unset} is not set; see configs/dataset for examples")
        check(cls, fields, DatasetError, "dataset")
        return cls(**fields)

    @property
    def listed(self) -> str:
        """The name of the split's list. Raises DatasetError if it is a path out of the data set."""
        name = str(self.splits.get(self.split, self.split))
        if not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise DatasetError(f"dataset.split={self.split}: {name!r} is not a list's name; expected one such as train")
        return name

    def folder(self, tree: str) -> Path:
        """The root as an existing folder. Raises DatasetNotFound, with the expected tree, if it does not exist."""
        if not self.root:
            raise DatasetNotFound(f"dataset.root is not set; give the folder of {self.name!r}, which holds\n{tree}")
        try:
            folder = Path(resolve(self.root)).expanduser()
        except FileNotFoundError as error:
            raise DatasetNotFound(f"dataset.root={self.root}: {error}") from None
        if not folder.is_dir():
            raise DatasetNotFound(f"dataset.root={self.root} is not a folder; {self.name!r} expects one with\n{tree}")
        return folder


def read_ids(path: Path) -> NDArray[np.uint8]:
    """Read a label file whose values are class ids. Raises SampleError if it is missing or has another format."""
    return pixels(path, modes=("P", "L")).astype(np.uint8, copy=False)


def ids_of_colours(rgb: NDArray[np.uint8], classes: int) -> NDArray[np.uint8] | None:
    """Convert a label in PASCAL VOC's colours [H, W, 3] to class ids [H, W]; None if a colour is unknown."""
    from goca.drawing.palettes import voc_palette

    known = np.array([*range(min(classes, VOID)), VOID])
    codes = voc_palette()[known].astype(np.int64) @ CODE
    order = np.argsort(codes)
    found = rgb.astype(np.int64) @ CODE
    places = order[np.searchsorted(codes[order], found).clip(0, len(order) - 1)]
    return known[places].astype(np.uint8) if (codes[places] == found).all() else None


def read_ids_or_colours(path: Path, classes: int, notes: list[str]) -> NDArray[np.uint8]:
    """Like `read_ids`, but convert an RGB file in PASCAL VOC's colours to ids and add a note. Raises SampleError."""
    found = pixels(path, modes=("P", "L", "RGB", "RGBA"))
    if found.ndim == 2:
        return found.astype(np.uint8, copy=False)
    opaque = found.shape[2] == 3 or (found[..., 3] == 255).all()
    ids = ids_of_colours(found[..., :3], classes) if opaque else None
    if ids is None:
        raise SampleError(
            f"label {path.name} has mode RGB and colours other than those of PASCAL VOC's {classes} classes and void;"
            " expected one id per pixel (P, L)"
        )
    notes[:] = [f"label {path.name} is in PASCAL VOC's colours, not in ids; each colour was read as its class"]
    return ids


@dataclass
class Sample:
    """One image with its ground truth; files are opened on first use.

    id, name    the id in the split's list; the image's file name, the key of captions and annotations
    objects     ids of the classes that an annotation names; None: the classes of the label map
    read_label  label file -> class ids [H, W]; raises SampleError
    sources     further files that define the label's values or the present classes

    The EXIF orientation is ignored if the label has the size of the stored image. The image is turned upright if only
    then the sizes agree, or if there is no label; `notes` say so.
    """

    id: str
    image_path: Path
    label_path: Path
    objects: list[int] | None = None
    read_label: Callable[[Path], NDArray[np.uint8]] = read_ids
    sources: Sequence[Path] = ()
    remarks: list[str] = field(default_factory=list)  # notes on the label and the caption

    @property
    def name(self) -> str:
        return self.image_path.name

    @cached_property
    def image(self) -> Image.Image:
        """The decoded image, in the mode of its file. Raises SampleError if it cannot be read."""
        return self._read[0]

    @property
    def notes(self) -> list[str]:
        """What was changed in the image, and remarks on its label and caption. Raises SampleError like `image`."""
        return [*self._read[1], *self.remarks]

    @cached_property
    def _read(self) -> tuple[Image.Image, list[str]]:
        image, notes = opened(self.image_path, "image")
        if orientation(image) == 1:
            return image, notes
        upright, turned = turned_upright(image), [*notes, UPRIGHT]
        try:
            size = self._label.shape[::-1]
        except SampleError:
            return upright, turned
        return (upright, turned) if image.size != size == upright.size else (without_orientation(image), notes)

    @cached_property
    def _label(self) -> NDArray[np.uint8]:
        return self.read_label(self.label_path)

    @cached_property
    def label(self) -> NDArray[np.uint8]:
        """Class ids [H, W], VOID where unlabelled. Raises SampleError if the file is unreadable or of another size."""
        label = self._label
        height, width = label.shape
        if (width, height) != self.image.size:
            sizes = "the image is {}x{}, its label {}x{}".format(*self.image.size, width, height)
            raise SampleError(f"{sizes}; they must agree")
        return label

    @cached_property
    def present(self) -> list[int]:
        """Ids of the classes in the image, ascending, without background. Raises SampleError like `label`."""
        if self.objects is not None:
            return self.objects
        counts = np.bincount(self.label.ravel(), minlength=VOID + 1)
        return [int(class_id) for class_id in np.flatnonzero(counts[:VOID]) if class_id]


class Dataset(Protocol):
    """A benchmark. `class_names[i]` are the names that a caption may use for class i; class 0, background, has none."""

    name: str
    class_names: list[list[str]]
    ids: list[str]

    def sample(self, image_id: str) -> Sample:
        """Return the sample of that id. Raises SampleError if the file with its classes cannot be read."""
        ...


def class_label(class_names: Sequence[Sequence[str]], class_id: int) -> str:
    """Return a class's name for tables: its first name, and "background" for class 0."""
    names = class_names[class_id]
    return names[0] if names else ("background" if class_id == 0 else f"class {class_id}")


def class_labels(class_names: Sequence[Sequence[str]]) -> list[str]:
    """The name of each class for tables and figures, by its id."""
    return [class_label(class_names, class_id) for class_id in range(len(class_names))]


def class_table(classes: str, root: Path) -> list[list[str]]:
    """Read names per class id from the packaged table of that name or a .json file in the root."""
    path = root / classes if classes.endswith(".json") else TABLES / f"{classes}.json"
    if not path.is_file():
        known = ", ".join(sorted(table.stem for table in TABLES.glob("*.json") if "." not in table.stem))
        raise DatasetError(f"dataset.classes={classes!r}: unknown table; expected {known}, or a .json in the root")
    try:
        table = read_json(path)
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
    if (
        not isinstance(table, list)
        or len(table) < 2
        or not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in table)
    ):
        raise DatasetError(f"{path}: expected a list with a list of names per class id, [] for background")
    return table


def pixels(path: Path, modes: Sequence[str]) -> NDArray:
    """Read a label file whose Pillow mode is one of `modes`. Raises SampleError."""
    found, _ = opened(path, "label")
    if found.mode not in modes:
        raise SampleError(f"label {path.name} has mode {found.mode}; expected one id per pixel ({', '.join(modes)})")
    return np.array(found)


def opened(path: Path, what: str) -> tuple[Image.Image, list[str]]:
    """Decode an image file as it is stored; return it with notes. Raises SampleError if that fails."""
    if not path.exists():
        raise SampleError(f"{what} {path.name} is missing")
    try:
        return open_image(path)
    except ImageUnreadable as error:
        raise SampleError(f"{what} {path.name} cannot be read: {error.reason}") from None
