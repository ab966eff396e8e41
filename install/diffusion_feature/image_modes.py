"""Convert images of any mode, arrays and tensors to 8-bit RGB. Needs only numpy and Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from diffusion_feature.errors import ImageError, ImageUnreadable

TAKEN = (
    "a file's name, a PIL image, an array or tensor of uint8 or of fractions 0..1, [height, width, 3], "
    "[3, height, width] or [height, width]"
)
PIECE = 1 << 20  # pixels that are converted at a time


def from_numbers(values: Any) -> Image.Image:
    """An RGB image from an array or a tensor, see `read_image`. Raises ImageError."""
    tensor = hasattr(values, "detach")
    if tensor:
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    if not isinstance(values, np.ndarray):
        raise ImageError(f"an image is {TAKEN}; found {type(values).__name__}")
    found = f"found {values.dtype} {list(values.shape)}"
    first, last = values.ndim == 3 and values.shape[0] == 3, values.ndim == 3 and values.shape[-1] == 3
    if values.ndim == 4:
        raise ImageError(f"an image is {TAKEN}; {found}: give a batch as a list of its images")
    if not (first or last or values.ndim == 2) or 0 in values.shape:
        raise ImageError(f"an image is {TAKEN}; {found}")
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise ImageError(f"an image is {TAKEN}; {found}: convert it to uint8 (0..255)")
    if first and not (last and not tensor):
        values = values.transpose(1, 2, 0)
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        if not -1e-3 <= low <= high <= 1 + 1e-3:  # NaN too
            raise ImageError(f"expected floats in 0..1; found {low:g}..{high:g}: scale the image, or give uint8")
        values = (255 * values.clip(0, 1)).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def converted(image: Image.Image, where: str, at_most: int | None) -> tuple[Image.Image, bool]:
    """Convert to RGB; returns also whether any pixel is transparent. Reduced images are processed in strips."""
    factor = math.ceil((image.width * image.height / at_most) ** 0.5) if at_most else 1
    if factor == 1:
        return to_rgb(image, where)
    width, height = (max(1, -(-side // factor)) for side in image.size)
    reduced, clear = Image.new("RGB", (width, height)), False
    for top, strip in strips(image, factor):
        rgb, seen_through = to_rgb(strip, where)
        reduced.paste(rgb.reduce(factor), (0, top // factor))
        clear |= seen_through
    return reduced, clear


def strips(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """(top, strip), with heights that are multiples of the factor, except the last."""
    height = factor * max(1, PIECE // (image.width * factor))
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def to_rgb(image: Image.Image, where: str) -> tuple[Image.Image, bool]:
    if image.mode.startswith("I"):  # grey, 16 bits (in 32 for some formats)
        return from_16_bits(image, where)
    if image.mode == "F":
        raise ImageUnreadable(f"{where} has floating-point values of unknown range; save it as 8-bit PNG")
    if image.has_transparency_data:
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if clear.getchannel("A").getextrema()[0] != 255:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB"), True
    rgb = from_lab(image) if image.mode == "LAB" else image.convert("RGB")
    rgb.info = {}
    return rgb, False


def from_16_bits(image: Image.Image, where: str) -> tuple[Image.Image, bool]:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        found = f"{values.min()} to {values.max()}"
        raise ImageUnreadable(f"{where} has values from {found}; expected 8 or 16 bits: save it as 8-bit PNG")
    key = image.info.get("transparency")
    clear = values == (key if isinstance(key, int) else -1)
    return Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8)).convert("RGB"), bool(clear.any())


def from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))  # type: ignore[return-value]
