"""Pictures as people give them: files, folders, patterns; turned upright, 8 bits, RGB."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# what is taken from a folder or a pattern; a file that is named itself is opened whatever its ending
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2")
RESULTS = ("-labels.png", "-overlay.png")  # endings of what `goca segment` writes, beside a .json
ONE_PICTURE = ("MPO",)  # a photograph and its previews, which count as frames
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class NoPictures(ValueError):
    """A path, folder or pattern without a picture."""


class PictureUnreadable(ValueError):
    """A file that is no picture, or one that does not say what is meant."""


def find(given: Sequence[str]) -> list[Path]:
    """The picture files that paths, folders and patterns name, each once, in the order given.

    Folders and patterns leave out what `goca segment` wrote before. Raises NoPictures.
    """
    found: dict[Path, Path] = {}
    for text in given:
        for path in named_by(text):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def named_by(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        if not (inside := sorted(pictures(path.iterdir()))):
            kinds = ", ".join(ENDINGS)
            raise NoPictures(f"the folder {text} holds no picture ({kinds}); folders in it are not searched")
        return inside
    if path.exists():
        return [path]
    if not glob.has_magic(text):
        raise NoPictures(f"{text}: there is no such file or folder")
    if not (matching := sorted(pictures(map(Path, glob.glob(str(path), recursive=True))))):
        raise NoPictures(f"the pattern {text!r} matches no picture ({', '.join(ENDINGS)})")
    return matching


def pictures(paths: Iterator[Path] | map[Path]) -> Iterator[Path]:
    yield from (path for path in paths if path.suffix.lower() in ENDINGS and path.is_file() and not is_result(path))


def is_result(path: Path) -> bool:
    ending = next((ending for ending in RESULTS if path.name.endswith(ending)), None)
    return ending is not None and path.with_name(path.name.removesuffix(ending) + ".json").is_file()


def read(path: Path, frame: int | None = None) -> tuple[Image.Image, list[str]]:
    """The picture as RGB, and what was done to make it so.

    EXIF orientation is applied; of 16 bits the high 8 are kept; what is transparent is laid on white.
    frame   which frame of an animated or multi-page picture. Raises PictureUnreadable where none is chosen, or where
            the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            choose_frame(image, path, frame)
            deep = any("16" in str(tile[-1]) for tile in image.tile) or image.mode.startswith("I")
            image.load()
            upright = ImageOps.exif_transpose(image)
            turned = image.getexif().get(0x0112, 1) not in (0, 1)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError:
        found = f"{path} is no picture, or of a kind that Pillow does not read; save it as PNG"
        raise PictureUnreadable(found) from None
    except UNREADABLE as error:
        if isinstance(error, PictureUnreadable):
            raise
        raise PictureUnreadable(f"{path} cannot be read: {error}") from None
    notes = ["turned upright, as its EXIF orientation says"] if turned else []
    if deep:
        notes.append("16 bits per channel: the high 8 of them are used")
    if seen_through(upright):
        notes.append("transparent parts are laid on white")
    return to_rgb(upright, path), notes


def choose_frame(image: Image.Image, path: Path, frame: int | None) -> None:
    frames = 1 if image.format in ONE_PICTURE else getattr(image, "n_frames", 1)
    if frames > 1 and frame is None:
        raise PictureUnreadable(f"{path} has {frames} frames; choose one with --frame 0 ... --frame {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise PictureUnreadable(f"{path} has no frame {frame}; it has {frames}, counted from 0")
    if frames > 1:
        image.seek(frame or 0)


def seen_through(image: Image.Image) -> bool:
    """Whether some pixel is not opaque."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):  # grey, 16 bits (in 32 for some formats)
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            found = f"{values.min()} to {values.max()}"
            raise PictureUnreadable(f"{path} has values from {found}; expected 8 or 16 bits: save it as 8-bit PNG")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureUnreadable(f"{path} holds floating-point values, whose range is not known; save it as 8-bit PNG")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
