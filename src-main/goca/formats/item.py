"""`Labelled`: the input of a writer of labels, an image with its label map and name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from goca.errors import GocaError
from goca.files.atomic import whole_file, write_png
from goca.files.names import UNSAFE

if TYPE_CHECKING:
    from goca.segmentation import Segmentation

BACKGROUND, VOID = 0, 255
COPIED = {"JPEG": ".jpg", "PNG": ".png"}  # formats of image files that every tool reads
ORIENTATION = 0x0112  # EXIF's tag

Classes = Mapping[int, str]


class FormatError(GocaError, ValueError):
    """A format, name or label map cannot be written; the message says what was expected."""


class FormatMissing(FormatError):
    """The library of a format is not installed."""


@dataclass(frozen=True)
class Labelled:
    """An image with its label map.

    name    name of its files, without suffix
    label   class ids 0..254, 0 background, 255 void   uint8 [H, W]; an array or a function that reads it
    image   an upright PIL image, or its file
    split   "train", "val", ...: its list, for formats with lists
    record  further data on the image, which a format may store
    """

    name: str
    label: np.ndarray | Callable[[], np.ndarray]
    image: Image.Image | Path
    split: str = "train"
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in (self.name, self.split):
            if not what or what.strip(" .") != what or UNSAFE.search(what):
                raise FormatError(
                    f"{what!r} is not a file name; expected one without separators and control characters"
                )

    def read_label(self) -> np.ndarray:
        """The label map, uint8 [H, W]. Raises FormatError."""
        label = self.label() if callable(self.label) else self.label
        if label.ndim != 2 or not label.size or label.dtype.kind not in "iub" or label.min() < 0 or label.max() > VOID:
            raise FormatError(f"{self.name}: a label map is [H, W] of 0..255; found {label.dtype} {list(label.shape)}")
        return label.astype(np.uint8)

    def read_image(self) -> Image.Image:
        """The image, upright, RGB."""
        from diffusion_feature.images import read_image

        return read_image(self.image).image

    def copy_image(self, folder: Path) -> Path:
        """Write the image as folder/NAME.jpg or .png: a copy of the file if every tool reads it, else a PNG."""
        ending = self._copied_as()
        target = folder / f"{self.name}{ending or '.png'}"
        if not ending:
            return write_png(target, self.read_image())
        with whole_file(target) as temporary:
            shutil.copyfile(self.image, temporary)  # type: ignore[arg-type]
        return target

    def _copied_as(self) -> str | None:
        if isinstance(self.image, Image.Image):
            return None
        with Image.open(self.image) as image:
            plain = image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1
            return COPIED.get(image.format or "") if plain else None


Writer = Callable[[Path, Iterable[Labelled], Classes], list[Path]]


def from_segmentation(segmentation: Segmentation, name: str, threshold: float = 0.0) -> tuple[Labelled, dict[int, str]]:
    """A segmentation as (item, class table). Raises FormatError if it was made without its image."""
    if segmentation.image is None:
        raise FormatError("the segmentation was made without its image, and the formats need it")
    label = segmentation.label_map(threshold=threshold).numpy()
    classes = {class_id: each for class_id, each in segmentation.classes().items() if class_id != BACKGROUND}
    return Labelled(name, label, segmentation.image), classes


def check(label: np.ndarray, item: Labelled, classes: Classes) -> list[int]:
    """The class ids of a label map, in order. Raises FormatError for an id without a name."""
    ids = [int(each) for each in np.unique(label) if each not in (BACKGROUND, VOID)]
    if strange := [each for each in ids if each not in classes]:
        raise FormatError(f"{item.name}: class {strange[0]} has no name; known: {', '.join(map(str, classes))}")
    return ids


def regions(label: np.ndarray, item: Labelled, classes: Classes) -> Iterator[tuple[int, np.ndarray]]:
    """(class id, mask bool [H, W]) of each connected region, by class and then from the top."""
    from scipy import ndimage

    for class_id in check(label, item, classes):
        numbered, count = ndimage.label(label == class_id, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            yield class_id, numbered == number
