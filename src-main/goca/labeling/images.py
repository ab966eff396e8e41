"""Images as they are sent: scaled down, RGB, JPEG."""

from __future__ import annotations

import io
from pathlib import Path

from diffusion_feature.images import ImageUnreadable, image_size, read_image
from PIL import Image

from goca.datasets import SampleError
from goca.labeling.pricing import scaled


def as_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Encode an image as JPEG, its longer side at most `side`; transparent pixels become white."""
    image = read_image(image).image
    if (size := scaled(image.size, side)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def size_of(path: Path) -> tuple[int, int]:
    """Read (width, height) from the file's header alone. Raises SampleError if it is not an image."""
    if not path.exists():
        raise SampleError(f"image {path.name} is missing")
    try:
        return image_size(path)
    except ImageUnreadable as error:
        raise SampleError(f"image {path.name} cannot be read: {error.reason}") from None
