"""Find the images named on a command line: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from goca.errors import GocaError

# files of folders and patterns are filtered by these; a file that is named directly is always opened
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2")
STANDARD = "-"  # instead of a file: standard input or output
RESULTS = ("-labels.png", "-overlay.png")  # endings of files that `goca segment` writes next to a .json


class NoImages(GocaError, ValueError):
    """A path, folder or pattern without an image."""


@contextmanager
def with_standard_input(given: Sequence[str]) -> Iterator[list[str]]:
    """The same paths; for "-", a temporary file named stdin with the bytes of standard input. Raises NoImages."""
    if STANDARD not in given:
        yield list(given)
        return
    with TemporaryDirectory(prefix="goca-") as folder:
        file = Path(folder) / "stdin"
        if not file.write_bytes(sys.stdin.buffer.read()):
            raise NoImages("- stands for standard input, which is empty; expected the bytes of an image file")
        yield [str(file) if text == STANDARD else text for text in given]


def find(given: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and patterns refer to, without repetitions, in the order given.

    Earlier results of `goca segment` in folders and patterns are skipped. Raises NoImages.
    """
    found: dict[Path, Path] = {}
    for text in given:
        for path in named_by(text):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def named_by(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        if not (inside := sorted(images(path.iterdir()))):
            kinds = ", ".join(ENDINGS)
            raise NoImages(f"the folder {text} contains no image ({kinds}); subfolders are not searched")
        return inside
    if path.exists():
        return [path]
    if not glob.has_magic(text):
        raise NoImages(f"{text}: there is no such file or folder")
    if not (matching := sorted(images(map(Path, glob.glob(str(path), recursive=True))))):
        raise NoImages(f"the pattern {text!r} matches no image ({', '.join(ENDINGS)})")
    return matching


def images(paths: Iterator[Path] | map[Path]) -> Iterator[Path]:
    yield from (path for path in paths if path.suffix.lower() in ENDINGS and path.is_file() and not is_result(path))


def is_result(path: Path) -> bool:
    ending = next((ending for ending in RESULTS if path.name.endswith(ending)), None)
    return ending is not None and path.with_name(path.name.removesuffix(ending) + ".json").is_file()
