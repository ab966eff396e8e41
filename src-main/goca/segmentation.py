"""What a segmentation is: one score map per class, and the pictures that can be made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from goca.colours import overlay, voc_palette

BACKGROUND = 0


@dataclass(frozen=True)
class Segmentation:
    """Score maps of one image.

    scores      refined, one map per class and then the background's   [n, g, g]
    class_ids   the class of each map; 0 is background
    names       the same, in words
    image_size  (height, width) of the picture; None if it is not known
    image       the picture itself, for overlays
    """

    scores: Tensor
    class_ids: list[int]
    names: list[str]
    image_size: tuple[int, int] | None = None
    image: Any = None

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

    def overlay(self, size: tuple[int, int] | None = None, strength: float = 0.6) -> Any:
        """The picture under the label map's colours, as a PIL image (on white, if the picture is not known)."""
        label = self.label_map(size).numpy()
        shape = label.shape[::-1]
        picture = Image.new("RGB", shape, "white") if self.image is None else self.image.convert("RGB").resize(shape)
        return overlay(picture, label, alpha=strength)

    def save(self, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
        """The label map as a palette PNG of class ids 0..255; written beside `path`, then renamed: never half there."""
        label = self.label_map(size).numpy()
        if label.max(initial=0) > 255:
            raise ValueError(f"class id {label.max()} does not fit a palette PNG (0..255); use label_map() instead")
        picture = Image.fromarray(label.astype(np.uint8), mode="P")
        picture.putpalette(voc_palette().flatten().tolist())
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            picture.save(temporary, format="PNG")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
