"""The one way in which images are read: upright, RGB, 8 bits; by every command and every function that takes one.

    read = read_image("photo.jpg")
    read.image, read.notes          # PIL image, ["turned upright, as its EXIF orientation says"]

Needs numpy and Pillow alone.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from diffusion_feature.errors import ImageError as ImageError
from diffusion_feature.errors import PictureUnreadable as PictureUnreadable
from diffusion_feature.image_modes import converted
from diffusion_feature.image_modes import from_numbers as from_numbers

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

    image    see `image_modes.TAKEN`; where [3, H, W] and [H, W, 3] both fit, a tensor is the first, an array the second
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
        found = f"{path} is not an image, or in a format that cannot be read; save it as PNG"
        raise PictureUnreadable(found, "it is not an image, or in a format that Pillow cannot read") from None
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
        rgb, clear = converted(image, where, at_most)
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


def _unreadable(where: str | Path, error: Exception | str) -> PictureUnreadable:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that are read: save it smaller"
    return PictureUnreadable(f"{where} cannot be read: {reason}", reason)
