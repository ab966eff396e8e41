"""`Segmentation`: one score map per class, and the label maps, masks, images and files made from them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusion_feature.images import image_size, is_file, read_image
from PIL import Image
from torch import Tensor

from goca.drawing.class_colours import class_colours
from goca.drawing.legend import STRENGTH, Entry, mask_on, painted, with_legend
from goca.drawing.notebook import as_html, as_png
from goca.drawing.palettes import palette_image
from goca.errors import GocaError
from goca.files.atomic import write_png

BACKGROUND = 0


class ClassNotFound(GocaError, KeyError):
    """A segmentation has no class of that name or id; the message lists its classes."""

    def __str__(self) -> str:
        return str(self.args[0])


class OutsideImage(GocaError, IndexError):
    """A pixel outside the image."""


class ImageUnknown(GocaError, ValueError):
    """A method needs the image, but the segmentation was made without it."""


class OnDemand:
    """A field with an image, or with its file, which is read (upright, RGB) on each access."""

    def __get__(self, owner: Any, kind: type) -> Any:
        given = None if owner is None else vars(owner)["image"]
        return read_image(given).image if is_file(given) else given

    def __set__(self, owner: Any, given: Any) -> None:
        vars(owner)["image"] = given


@dataclass(frozen=True, repr=False)
class Segmentation:
    """Score maps of one image.

    scores      refined score maps: one per class, then the background's   [n, g, g]
    class_ids   the class id of each map; 0 is background
    names       the class name of each map
    image_size  (height, width) of the image; None if unknown
    image       the image, upright RGB, for overlays; a file name is read on each access
    presence    with ask=open: the probability that each class except the background is in the image, 0..1
    present     with ask=open: whether each of these classes is judged present; if not, its map is 0
    """

    scores: Tensor
    class_ids: list[int]
    names: list[str]
    image_size: tuple[int, int] | None = None
    image: Any = OnDemand()  # None by default
    presence: tuple[float, ...] | None = None
    present: tuple[bool, ...] | None = None

    def label_map(self, size: tuple[int, int] | None = None, threshold: float = 0.0) -> Tensor:
        """The class with the highest score at each pixel; ties go to the earlier map   [H, W] int64 on the CPU

        size       (height, width); the image's own by default
        threshold  added to the background maps
        """
        scores = self.resized(size)
        ids = torch.tensor(self.class_ids, device=scores.device)
        offset = threshold * (ids == BACKGROUND)
        return ids[(scores + offset[:, None, None]).argmax(0)].cpu()

    @property
    def own_size(self) -> tuple[int, int]:
        """The default (height, width) of label maps: the image's, or the grid's if that is unknown."""
        h, w = self.image_size or tuple(self.scores.shape[-2:])
        return h, w

    def resized(self, size: tuple[int, int] | None = None) -> Tensor:
        """The score maps, resized bilinearly   [n, H, W]; size: (height, width), by default the image's"""
        return F.interpolate(
            self.scores[None].float(), size=size or self.own_size, mode="bilinear", align_corners=False
        )[0]

    def at(self, x: int, y: int, threshold: float = 0.0) -> list[tuple[str, float]]:
        """The class names with their scores at a pixel of the image, highest first; the first is that of `label_map`.

        x, y       columns from the left and rows from the top, from 0
        threshold  added to the background maps, the highest of which counts
        raises     OutsideImage
        """
        scores = self.resized()
        h, w = scores.shape[-2:]
        if not (0 <= x < w and 0 <= y < h):
            raise OutsideImage(f"x={x}, y={y} is outside the image: expected x in 0..{w - 1} and y in 0..{h - 1}")
        found: dict[str, float] = {}
        for class_id, name, score in zip(self.class_ids, self.names, scores[:, y, x].tolist()):
            value = score + threshold * (class_id == BACKGROUND)
            found[name] = max(value, found.get(name, value))
        return sorted(found.items(), key=lambda pair: -pair[1])

    def masks(self, label: Tensor | None = None) -> dict[int, Tensor]:
        """Class id -> its mask   [H, W] bool on the CPU; the background is included only if it has a pixel

        label   a label map of any size and threshold; None: `label_map()`
        """
        label = self.label_map() if label is None else label
        masks = {class_id: label == class_id for class_id in self.classes()}
        return {class_id: mask for class_id, mask in masks.items() if class_id != BACKGROUND or mask.any()}

    def summary(self, label: Tensor | None = None) -> list[dict[str, Any]]:
        """Per class of `masks`: id, name, area, mean_score, max_score, in numbers that JSON can hold.

        area        share of the label map's pixels, 0..1
        mean_score  over the grid cells of the class; None if it has none
        max_score   over the whole grid; None where the map is NaN
        presence, present   with ask=open, for all classes except the background
        """
        label, names = self.label_map() if label is None else label, self.classes()
        return [
            {
                "id": class_id,
                "name": names[class_id],
                "area": float(mask.double().mean()),
                **self._scores_of(class_id, label),
                **self._presence_of(class_id),
            }
            for class_id, mask in self.masks(label).items()
        ]

    def classes(self) -> dict[int, str]:
        """Class id -> name, in the order of the maps."""
        return dict(zip(self.class_ids, self.names))

    def _scores_of(self, class_id: int, label: Tensor) -> dict[str, float | None]:
        own = torch.tensor([each == class_id for each in self.class_ids])
        scores = self.scores.detach().float().cpu()[own].amax(0)  # [g, g]; several background maps count as one
        cells = F.interpolate(label[None, None].double(), size=tuple(scores.shape), mode="nearest-exact")[0, 0]
        held = scores[cells == class_id]
        return {"mean_score": _number(held.mean()), "max_score": _number(scores.max())}

    def _presence_of(self, class_id: int) -> dict[str, float | bool]:
        if self.presence is None or self.present is None or class_id == BACKGROUND:
            return {}
        number = self.class_ids.index(class_id)
        return {"presence": self.presence[number], "present": self.present[number]}

    def __getitem__(self, name: str | int) -> Tensor:
        """The mask of a class, by its name or id   [H, W] bool on the CPU. Raises ClassNotFound."""
        return self.label_map() == self.class_id(name)

    def class_id(self, name: str | int) -> int:
        """The id of a class, given by its name (in any case) or id. Raises ClassNotFound."""
        wanted = name.strip().lower() if isinstance(name, str) else name
        for class_id, own in self.classes().items():
            if wanted in (class_id, own.lower()):
                return class_id
        known = ", ".join(self.classes().values())
        raise ClassNotFound(f"no class {name!r} in this segmentation; expected one of: {known}")

    def cutout(self, name: str | int, threshold: float = 0.0) -> Image.Image:
        """The image where a class is, transparent elsewhere   RGBA. Raises ClassNotFound, ImageUnknown."""
        if self.image is None:
            raise ImageUnknown("a cut-out needs the image, but this segmentation was made without it")
        return mask_on(self.image, (self.label_map(threshold=threshold) == self.class_id(name)).numpy())

    def to_coco(self, image_id: int = 1, threshold: float = 0.0) -> list[dict[str, Any]]:
        """COCO annotations, one per class that has a pixel, with masks as run lengths (RLE of pycocotools).

        image_id   stored in each annotation; category_id is the class id, category the class name
        threshold  as for `label_map`
        raises     FormatMissing if pycocotools is not installed

        The score of an annotation is the class's mean score over its pixels' grid cells.
        """
        from goca.formats.objects import coco_annotations

        return coco_annotations(self._held(threshold), image_id)

    def to_detections(self, threshold: float = 0.0) -> Any:
        """The classes that have a pixel as `supervision.Detections`: boxes, masks, mean scores, ids and names.

        threshold  as for `label_map`
        raises     FormatMissing if supervision is not installed
        """
        from goca.formats.objects import detections

        return detections(self._held(threshold), self.own_size)

    def _held(self, threshold: float) -> list[tuple[dict[str, Any], np.ndarray]]:
        """The row of `summary` and the mask [H, W] of each class with a pixel, without the background."""
        label = self.label_map(threshold=threshold)
        masks = self.masks(label)
        rows = [row for row in self.summary(label) if row["id"] != BACKGROUND and row["area"] > 0]
        return [(row, masks[row["id"]].numpy()) for row in rows]

    def overlay(
        self,
        size: tuple[int, int] | None = None,
        strength: float = STRENGTH,
        threshold: float = 0.0,
        legend: bool = False,
    ) -> Image.Image:
        """The image in grey with its classes in colour, as a PIL image; background pixels keep their own colours.

        size       (height, width); the image's own by default
        strength   opacity of the colours, 0..1
        threshold  as for `label_map`
        legend     whether colours, names and areas are added below

        Without an image, the classes are drawn on white.
        """
        label = self.label_map(size, threshold)
        h, w = label.shape
        known = self.image
        image = Image.new("RGB", (w, h), "white") if known is None else read_image(known).image.resize((w, h))
        drawn = painted(image, label.numpy(), self.colours(), strength)
        return with_legend(drawn, self.legend(label)) if legend else drawn

    def colours(self) -> dict[int, tuple[int, int, int]]:
        """Class id -> the colour in which it is drawn, (red, green, blue), 0..255"""
        return class_colours(self.classes())

    def legend(self, label: Tensor | None = None) -> list[Entry]:
        """Name, colour and area of each class of `masks`; the background, which has no colour, comes last."""
        colours = self.colours()
        rows = [(class_id, float(mask.double().mean())) for class_id, mask in self.masks(label).items()]
        rows.sort(key=lambda row: row[0] == BACKGROUND)
        return [Entry(self.classes()[i], None if i == BACKGROUND else colours[i], share) for i, share in rows]

    def save(self, path: str | os.PathLike[str], size: tuple[int, int] | None = None, threshold: float = 0.0) -> None:
        """Write the label map as a palette PNG of class ids 0..255 (to a temporary name, then renamed).

        size, threshold  as for `label_map`
        """
        write_png(path, label_image(self.label_map(size, threshold)))

    def __repr__(self) -> str:
        names = [name for class_id, name in self.classes().items() if class_id != BACKGROUND]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        h, w = self.own_size
        return f"Segmentation({shown}; {h} x {w})"

    def _repr_png_(self) -> bytes:
        """For notebooks: the overlay with its legend."""
        return as_png(self.overlay(legend=True))

    def _repr_html_(self) -> str:
        return as_html(self.overlay(legend=True), repr(self))


def size_and_image(image: Any) -> tuple[tuple[int, int], Any]:
    """(height, width) of an image in any form that `read_image` accepts, and the image.

    A file name stays a file name, so a list of many files is not kept in memory. Raises ImageUnreadable, ImageError.
    """
    if is_file(image):
        width, height = image_size(Path(image))
        return (height, width), Path(image)
    read = read_image(image).image
    return (read.height, read.width), read


def label_image(label: Tensor) -> Image.Image:
    """A label map of class ids 0..255 as a palette image in PASCAL VOC's colours. Raises ValueError beyond 255."""
    ids = label.numpy()
    if ids.max(initial=0) > 255:
        raise ValueError(f"class id {ids.max()} does not fit a palette PNG (0..255); use label_map() instead")
    return palette_image(ids)


def _number(value: Tensor) -> float | None:
    return number if math.isfinite(number := float(value)) else None
