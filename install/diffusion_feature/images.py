"""The one way in which images are read: upright, RGB, 8 bits; by every command and every function that takes one.

    read = read_image("photo.jpg")
    read.image, read.notes          # PIL image, ["turned upright, as its EXIF orientation says"]

Needs numpy and Pillow alone.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_feature.errors import ExtractorError

TAKEN = (
    "a file's name, a PIL image, an array or tensor of uint8 or of fractions 0..1, [height, width, 3], "
    "[3, height, width] or [height, width]"
)
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # its value -> how the stored pixels are turned upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # those that swap width and height
PALETTES = ("P", "1")  # modes that Pillow resizes by nearest neighbour
ONE_IMAGE = ("MPO",)  # a photograph and its previews, which count as frames
UPRIGHT = "turned upright, as its EXIF orientation says"
PNG = b"\x89PNG\r\n\x1a\n"
PIECE = 1 << 20  # bytes, or pixels, that are worked on at a time


class ImageError(ExtractorError, ValueError):
    """Something that is not taken as an image; the message says what is."""


class PictureUnreadable(ImageError):
    """A file that is missing, damaged or no image, or one that does not say what is meant.

    reason   the message without the file's name
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


class ReadImage(NamedTuple):
    """An image as it was read.

    image   upright, RGB, 8 bits
    notes   what was done to make it so
    stored  upright; the palette image (or black-and-white one) that it was, if it has no transparency; else `image`
    """

    image: Image.Image
    notes: list[str]
    stored: Image.Image


def read_image(image: Any, frame: int | None = 0, at_most: int | None = None) -> ReadImage:
    """An image in whatever form people have it: EXIF orientation applied, transparency laid on white.

    image    see TAKEN. Where [3, H, W] and [H, W, 3] both fit, a tensor is the first and an array the second
    frame    of an animation or a file of several pages, from 0; None: such a file is refused
    at_most  pixels: a larger image is reduced by a whole factor while it is read; only where nothing needs its size
    errors   PictureUnreadable, ImageError

    16-bit greys keep their high 8 bits; CMYK, LAB and other modes are converted; no colour profile is applied. An image
    that is upright RGB already is returned itself. A file is closed again.
    """
    if isinstance(image, Image.Image):
        return _upright(image, "the image", [], at_most)
    if is_file(image):
        path = Path(image)
        opened, notes = open_image(path, frame, at_most)
        return _upright(opened, str(path), notes, at_most)
    rgb = from_numbers(image)
    return ReadImage(rgb, [], rgb)


def open_image(path: Path, frame: int | None = 0, at_most: int | None = None) -> tuple[Image.Image, list[str]]:
    """A file's image, decoded, in the file's own mode and orientation; and notes. Raises PictureUnreadable.

    Checked beyond what Pillow does: the checksums of a PNG's chunks, without which one flipped bit is other pixels.
    """
    try:
        with path.open("rb") as file:
            check_png(file)
            with Image.open(file) as image:
                notes = _choose_frame(image, path, frame)
                if at_most is not None and (share := at_most / (image.width * image.height)) < 1:
                    notes.append(f"its {image.width} x {image.height} pixels are many: it is read smaller")
                    image.draft(None, tuple(math.ceil(side * share**0.5) for side in image.size))  # type: ignore[arg-type]
                if image.format == "TIFF" and orientation(image) != 1:  # Pillow turns these itself
                    notes.append(UPRIGHT)
                if any("16" in str(tile[-1]) for tile in image.tile) or image.mode.startswith("I"):
                    notes.append("16 bits per channel: the high 8 of them are used")
                image.load()
                return image, notes
    except PictureUnreadable:
        raise
    except FileNotFoundError:
        raise PictureUnreadable(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        found = f"{path} is no picture, or one of a kind that cannot be read; save it as PNG"
        raise PictureUnreadable(found, "it is no image, or one of a kind that Pillow does not read") from None
    except Exception as error:  # a damaged file makes Pillow's readers raise anything
        raise _unreadable(path, error) from None


def is_file(image: Any) -> bool:
    """Whether an image is given by its file's name."""
    return isinstance(image, str | os.PathLike)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, read from the file's head alone. Raises PictureUnreadable."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if (turn := orientation(image)) != 1 and image.format == "TIFF":  # versions of Pillow differ
                image.load()
                return image.size
            return (height, width) if turn in SIDEWAYS else (width, height)
    except Exception as error:
        raise _unreadable(path, error) from None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that makes sense."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data: the pixels are good
        return 1
    return found if found in TURNS else 1


def without_orientation(image: Image.Image) -> Image.Image:
    """The image as its pixels are stored, so that nobody turns it."""
    bare = image.copy()
    bare.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return bare


def turned_upright(image: Image.Image) -> Image.Image:
    """The image in its own mode, as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else without_orientation(image).transpose(turn)


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
            raise ImageError(f"an image of fractions lies in 0..1; found {low:g}..{high:g}: scale it, or give uint8")
        values = (255 * values.clip(0, 1)).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def check_png(file: BinaryIO) -> None:
    """Raises PictureUnreadable if the file is a PNG whose chunks are cut or do not fit their checksums.

    Other formats pass; the file is at its start again afterwards.
    """
    if file.read(len(PNG)) == PNG:
        while (kind := _check_chunk(file)) != b"IEND":
            if not kind:
                raise _unreadable(file.name, "the PNG file is truncated")
    file.seek(0)


def _check_chunk(file: BinaryIO) -> bytes:
    """The kind of the chunk that was read; b"" where the file ends before it does."""
    head = file.read(8)
    left, kind = int.from_bytes(head[:4], "big"), head[4:]
    checksum = zlib.crc32(kind)
    while left:
        if not (piece := file.read(min(left, PIECE))):
            return b""
        left, checksum = left - len(piece), zlib.crc32(piece, checksum)
    stored = file.read(4)
    if len(stored) == 4 and int.from_bytes(stored, "big") != checksum:
        name = kind.decode("latin-1")
        raise _unreadable(file.name, f"the checksum of its PNG chunk {name!r} is wrong, so the file is damaged")
    return kind if len(stored) == 4 else b""


def _choose_frame(image: Image.Image, path: Path, frame: int | None) -> list[str]:
    frames = 1 if image.format in ONE_IMAGE else getattr(image, "n_frames", 1)
    if frames > 1 and frame is None:
        raise PictureUnreadable(f"{path} has {frames} frames; choose one with --frame 0 ... --frame {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise PictureUnreadable(f"{path} has no frame {frame}; it has {frames}, counted from 0")
    if frames > 1:
        image.seek(frame or 0)
    return [f"the first of its {frames} frames is used"] if frames > 1 and frame == 0 else []


def _upright(image: Image.Image, where: str, notes: list[str], at_most: int | None) -> ReadImage:
    """What `read_image` gives, of an image in any mode."""
    if 0 in image.size:
        raise ImageError(f"{where} is {image.width} x {image.height} pixels; there is nothing to see")
    try:
        _load(image)
        if image.mode == "RGB" and "transparency" not in image.info and orientation(image) == 1 and not at_most:
            return ReadImage(image, notes, image)
        turn = TURNS.get(orientation(image))
        rgb, clear = _converted(image, where, at_most)
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(where, error) from None
    if turn is not None:
        rgb, notes = rgb.transpose(turn), [UPRIGHT, *notes]
    if clear:
        notes.append("transparent parts are laid on white")
    palette = image.mode in PALETTES and not clear and rgb.size in (image.size, image.size[::-1])
    return ReadImage(rgb, notes, turned_upright(image) if palette else rgb)


def _load(image: Image.Image) -> None:
    """Decode an image that was opened and not yet read; a PNG file is checked first."""
    opened = getattr(image, "filename", "")
    if getattr(image, "tile", None) and image.format == "PNG" and opened and Path(opened).is_file():
        with open(opened, "rb") as file:
            check_png(file)
    image.load()


def _converted(image: Image.Image, where: str, at_most: int | None) -> tuple[Image.Image, bool]:
    """As RGB, and whether some pixel is not opaque; strip by strip where it is reduced."""
    factor = math.ceil((image.width * image.height / at_most) ** 0.5) if at_most else 1
    if factor == 1:
        return _to_rgb(image, where)
    width, height = (max(1, -(-side // factor)) for side in image.size)
    reduced, clear = Image.new("RGB", (width, height)), False
    for top, strip in _strips(image, factor):
        rgb, seen_through = _to_rgb(strip, where)
        reduced.paste(rgb.reduce(factor), (0, top // factor))
        clear |= seen_through
    return reduced, clear


def _strips(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """(top, strip) whose heights are multiples of the factor, but the last's."""
    height = factor * max(1, PIECE // (image.width * factor))
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _to_rgb(image: Image.Image, where: str) -> tuple[Image.Image, bool]:
    if image.mode.startswith("I"):  # grey, 16 bits (in 32 for some formats)
        return _from_16_bits(image, where)
    if image.mode == "F":
        raise PictureUnreadable(f"{where} holds floating-point values, whose range is not known; save it as 8-bit PNG")
    if image.has_transparency_data:
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if clear.getchannel("A").getextrema()[0] != 255:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB"), True
    rgb = _from_lab(image) if image.mode == "LAB" else image.convert("RGB")
    rgb.info = {}
    return rgb, False


def _from_16_bits(image: Image.Image, where: str) -> tuple[Image.Image, bool]:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        found = f"{values.min()} to {values.max()}"
        raise PictureUnreadable(f"{where} has values from {found}; expected 8 or 16 bits: save it as 8-bit PNG")
    key = image.info.get("transparency")
    clear = values == (key if isinstance(key, int) else -1)
    return Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8)).convert("RGB"), bool(clear.any())


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))  # type: ignore[return-value]


def _unreadable(where: str | Path, error: Exception | str) -> PictureUnreadable:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that are read: save it smaller"
    return PictureUnreadable(f"{where} cannot be read: {reason}", reason)
