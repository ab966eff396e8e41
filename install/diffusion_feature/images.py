"""Read images as upright 8-bit RGB; every command and function that accepts an image uses this module.

    read = read_image("photo.jpg")
    read.image, read.notes          # PIL image, ["turned upright, as its EXIF orientation says"]

Needs only numpy and Pillow.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from diffusion_feature.errors import ImageError as ImageError
from diffusion_feature.errors import ImageUnreadable as ImageUnreadable
from diffusion_feature.image_modes import converted
from diffusion_feature.image_modes import from_numbers as from_numbers
from diffusion_feature.renamed import former_names

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
PIECE = 1 << 20  # bytes that are read at a time


class ReadImage(NamedTuple):
    """An image that was read.

    image   upright, RGB, 8 bits
    notes   the conversions that were applied
    stored  upright; the original palette or black-and-white image, if it has no transparency; otherwise `image`
    """

    image: Image.Image
    notes: list[str]
    stored: Image.Image


def read_image(image: Any, frame: int | None = 0, at_most: int | None = None) -> ReadImage:
    """Read an image in any usual form, with EXIF orientation applied and transparency on white.

    image    see `image_modes.TAKEN`; if both [3, H, W] and [H, W, 3] fit, a tensor is read as the first and an array as
             the second
    frame    the frame of an animation or file of several pages, from 0; None: such a file is refused
    at_most  pixels; larger images are reduced by an integer factor while they are read. Only for uses that do not need
             the original size
    errors   ImageUnreadable, ImageError

    16-bit greys keep their high 8 bits; CMYK, LAB and other modes are converted; no colour profile is applied. An image
    that is already upright RGB is returned itself. Files are closed.
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
    """Decode a file's image in its own mode and orientation; returns it with notes. Raises ImageUnreadable.

    In addition to Pillow's checks, the checksums of PNG chunks are verified: one flipped bit would change pixels.
    """
    try:
        with path.open("rb") as file:
            check_png(file)
            with Image.open(file) as image:
                notes = _choose_frame(image, path, frame)
                if at_most is not None and (share := at_most / (image.width * image.height)) < 1:
                    notes.append(f"reduced on reading, since it is large: {image.width} x {image.height} pixels")
                    image.draft(None, tuple(math.ceil(side * share**0.5) for side in image.size))  # type: ignore[arg-type]
                if image.format == "TIFF" and orientation(image) != 1:  # Pillow turns these itself
                    notes.append(UPRIGHT)
                if any("16" in str(tile[-1]) for tile in image.tile) or image.mode.startswith("I"):
                    notes.append("16 bits per channel: the high 8 of them are used")
                image.load()
                return image, notes
    except ImageUnreadable:
        raise
    except FileNotFoundError:
        raise ImageUnreadable(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        found = f"{path} is not an image, or in a format that cannot be read; save it as PNG"
        raise ImageUnreadable(found, "it is not an image, or in a format that Pillow cannot read") from None
    except Exception as error:  # a damaged file makes Pillow's readers raise anything
        raise _unreadable(path, error) from None


def is_file(image: Any) -> bool:
    """Whether an image is given as a file name."""
    return isinstance(image, str | os.PathLike)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header. Raises ImageUnreadable."""
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
    """The EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data; the pixels may be good
        return 1
    return found if found in TURNS else 1


def without_orientation(image: Image.Image) -> Image.Image:
    """The image with its pixels as stored and without EXIF orientation."""
    bare = image.copy()
    bare.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return bare


def turned_upright(image: Image.Image) -> Image.Image:
    """The image in its own mode, with its EXIF orientation applied."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else without_orientation(image).transpose(turn)


def check_png(file: BinaryIO) -> None:
    """Raises ImageUnreadable if the file is a PNG with truncated chunks or wrong checksums.

    Other formats pass. Afterwards, the file is at its start.
    """
    if file.read(len(PNG)) == PNG:
        while (kind := _check_chunk(file)) != b"IEND":
            if not kind:
                raise _unreadable(file.name, "the PNG file is truncated")
    file.seek(0)


def _check_chunk(file: BinaryIO) -> bytes:
    """Read a chunk; returns its kind, or b"" if the file ends within it."""
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
        raise ImageUnreadable(f"{path} has {frames} frames; choose one with --frame 0 ... --frame {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ImageUnreadable(f"{path} has no frame {frame}; it has {frames}, counted from 0")
    if frames > 1:
        image.seek(frame or 0)
    return [f"the first of its {frames} frames is used"] if frames > 1 and frame == 0 else []


def _upright(image: Image.Image, where: str, notes: list[str], at_most: int | None) -> ReadImage:
    """`read_image` for an image in any mode."""
    if 0 in image.size:
        raise ImageError(f"{where} is {image.width} x {image.height} pixels; expected at least one pixel")
    try:
        _load(image)
        if image.mode == "RGB" and "transparency" not in image.info and orientation(image) == 1 and not at_most:
            return ReadImage(image, notes, image)
        turn = TURNS.get(orientation(image))
        rgb, clear = converted(image, where, at_most)
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(where, error) from None
    if turn is not None:
        rgb, notes = rgb.transpose(turn), [UPRIGHT, *notes]
    if clear:
        notes.append("transparent parts became white")
    palette = image.mode in PALETTES and not clear and rgb.size in (image.size, image.size[::-1])
    return ReadImage(rgb, notes, turned_upright(image) if palette else rgb)


def _load(image: Image.Image) -> None:
    """Decode an opened image; a PNG file is checked first."""
    opened = getattr(image, "filename", "")
    if getattr(image, "tile", None) and image.format == "PNG" and opened and Path(opened).is_file():
        with open(opened, "rb") as file:
            check_png(file)
    image.load()


def _unreadable(where: str | Path, error: Exception | str) -> ImageUnreadable:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that are read: save it smaller"
    return ImageUnreadable(f"{where} cannot be read: {reason}", reason)


if not TYPE_CHECKING:  # a type checker would take any name for one of the module's
    __getattr__ = former_names(__name__, {"PictureUnreadable": "ImageUnreadable"})
