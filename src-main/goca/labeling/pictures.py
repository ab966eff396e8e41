"""Pictures as they are sent: scaled down, RGB, JPEG."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from goca.datasets import SampleError
from goca.labeling.pricing import scaled


def as_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """The picture with its longer side at most `side`, as JPEG; what is transparent becomes white."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if (size := scaled(image.size, side)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), read from the file's head alone. Raises SampleError if it is no picture."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise SampleError(f"image {path.name} is missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"image {path.name} cannot be read: {error}") from None
