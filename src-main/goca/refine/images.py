"""Inputs of refinements: images as tensors, size limits, checks of maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusion_feature.images import is_file, read_image
from PIL import Image
from torch import Tensor

from goca.refine.errors import ImageReduced, RefineError

LARGEST = 1 << 28  # numbers that one tensor of a refinement may hold: 1 GiB in float32


def rgb_tensor(image: Any) -> Tensor:
    """An image as RGB in 0..255   [3, H, W] float32

    image   a PIL image, a file, or numbers [3, H, W] or [H, W, 3], also with a leading axis of length 1. If both
            layouts fit, a tensor is read as the first and an array as the second. Values are 0..255, or floats 0..1
    errors  RefineError for another shape, other values or NaN; ImageUnreadable for a file
    """
    if isinstance(image, Image.Image) or is_file(image):
        image = np.array(read_image(image).image)
    pixels = torch.as_tensor(image)
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    first, last = pixels.ndim == 3 and pixels.shape[0] == 3, pixels.ndim == 3 and pixels.shape[-1] == 3
    if not (first or last) or 0 in pixels.shape:
        raise RefineError(f"the image has the shape {list(pixels.shape)}; expected RGB, [3, H, W] or [H, W, 3]")
    if last and not (first and isinstance(image, Tensor)):
        pixels = pixels.permute(2, 0, 1)
    low, high = (float(limit) for limit in pixels.aminmax())
    if not 0 <= low <= high <= 255:
        raise RefineError(f"the image has values in {low:g}..{high:g}; expected 0..255, or 0..1")
    return pixels.float() * 255 if pixels.is_floating_point() and high <= 1 else pixels.float()


def bounded(rgb: Tensor, copies: int) -> Tensor:
    """The image, reduced with a warning if `copies` maps of its size would exceed LARGEST   [3, H, W]"""
    h, w = rgb.shape[1:]
    if copies * h * w <= LARGEST:
        return rgb
    scale = (LARGEST / (copies * h * w)) ** 0.5
    size = max(1, int(h * scale)), max(1, int(w * scale))
    warnings.warn(f"{copies} maps of {h} x {w} pixels are too many: refined at {size[0]} x {size[1]}", ImageReduced, 3)
    return F.interpolate(rgb[None], size, mode="area")[0]


def check_maps(scores: Tensor, *also: int) -> None:
    """Raises RefineError unless the scores are maps [n, h, w] or have one of the other numbers of axes."""
    if scores.ndim not in (3, *also) or 0 in scores.shape[-2:]:
        raise RefineError(f"scores have the shape {list(scores.shape)}; expected one map per class, [n, h, w]")


def of_finite(scores: Tensor, refine: Callable[[Tensor], Tensor]) -> Tensor:
    """Refine only the finite maps; the others become NaN   [n, h, w] -> [n, H, W]"""
    finite = scores.isfinite().all(-1).all(-1)
    if bool(finite.all()):
        return refine(scores)
    refined = refine(scores[finite])
    result = refined.new_full((len(scores), *refined.shape[1:]), torch.nan)
    result[finite] = refined
    return result
