"""What a segmentation is: one score map per class, and the pictures that can be made of it."""

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

from goca.drawing.palettes import overlay, voc_palette
from goca.files.atomic import whole_file

BACKGROUND = 0


class OnDemand:
    """A field that holds an image, or its file, which is read (upright, RGB) whenever the image is asked for."""

    def __get__(self, owner: Any, kind: type) -> Any:
        given = None if owner is None else vars(owner)["image"]
        return read_image(given).image if is_file(given) else given

    def __set__(self, owner: Any, given: Any) -> None:
        vars(owner)["image"] = given


@dataclass(frozen=True)
class Segmentation:
    """Score maps of one image.

    scores      refined, one map per class and then the background's   [n, g, g]
    class_ids   the class of each map; 0 is background
    names       the same, in words
    image_size  (height, width) of the picture; None if it is not known
    image       the image itself, upright RGB, for overlays; given as a file's name, it is read when it is asked for
    presence    where words were looked for (ask=open): for each class that is not the background, the probability that
                it is there, 0..1, and whether it is taken as present; its map is 0 if it is not
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

        size       (height, width); the picture's own by default
        threshold  added to the background maps
        """
        h, w = size or self.image_size or tuple(self.scores.shape[-2:])
        scores = F.interpolate(self.scores[None].float(), size=(h, w), mode="bilinear", align_corners=False)[0]
        ids = torch.tensor(self.class_ids, device=scores.device)
        offset = threshold * (ids == BACKGROUND)
        return ids[(scores + offset[:, None, None]).argmax(0)].cpu()

    def masks(self, label: Tensor | None = None) -> dict[int, Tensor]:
        """Where each class is, by its id   [H, W] bool on the CPU; the background only where it holds a pixel

        label   a label map made before (of any size and threshold); None: `label_map()`
        """
        label = self.label_map() if label is None else label
        masks = {class_id: label == class_id for class_id in self.classes()}
        return {class_id: mask for class_id, mask in masks.items() if class_id != BACKGROUND or mask.any()}

    def summary(self, label: Tensor | None = None) -> list[dict[str, Any]]:
        """Per class of `masks`: id, name, area, mean_score, max_score, in numbers that JSON can hold.

        area        share of the label map's pixels, 0..1
        mean_score  over the grid cells that the class holds; None if it holds none
        max_score   over the whole grid; None where the map is NaN
        presence, present   where words were looked for, and of all classes but the background
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

    def overlay(self, size: tuple[int, int] | None = None, strength: float = 0.6) -> Any:
        """The picture under the label map's colours, as a PIL image (on white, if the picture is not known)."""
        label = self.label_map(size).numpy()
        shape = label.shape[::-1]
        known = self.image
        picture = Image.new("RGB", shape, "white") if known is None else read_image(known).image.resize(shape)
        return overlay(picture, label, alpha=strength)

    def save(self, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
        """The label map as a palette PNG of class ids 0..255; written beside `path`, then renamed: never half there."""
        save_picture(label_image(self.label_map(size)), path)


def size_and_image(image: Any) -> tuple[tuple[int, int], Any]:
    """(height, width) of an image in any form that `read_image` takes, and the image; a file stays a file.

    So a list of many files is not kept in memory. Raises PictureUnreadable, ImageError.
    """
    if is_file(image):
        width, height = image_size(Path(image))
        return (height, width), Path(image)
    read = read_image(image).image
    return (read.height, read.width), read


def label_image(label: Tensor) -> Image.Image:
    """A label map of class ids 0..255 as a palette picture in PASCAL VOC's colours. Raises ValueError beyond 255."""
    ids = label.numpy()
    if ids.max(initial=0) > 255:
        raise ValueError(f"class id {ids.max()} does not fit a palette PNG (0..255); use label_map() instead")
    picture = Image.fromarray(ids.astype(np.uint8), mode="P")
    picture.putpalette(voc_palette().flatten().tolist())
    return picture


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """The picture as a PNG; written beside `path`, then renamed: never half there."""
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _number(value: Tensor) -> float | None:
    return number if math.isfinite(number := float(value)) else None
