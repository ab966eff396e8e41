"""Images as they are given on a command line: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from goca.errors import GocaError

# what is taken from a folder or a pattern; a file that is named itself is opened whatever its ending
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2")
STANDARD = "-"  # in place of a file: standard input, or standard output
RESULTS = ("-labels.png", "-overlay.png")  # endings of what `goca segment` writes, beside a .json


class NoImages(GocaError, ValueError):
    """A path, folder or pattern without an image."""


@contextmanager
def with_standard_input(given: Sequence[str]) -> Iterator[list[str]]:
    """The same paths, with what comes from standard input ("-") in a temporary file called stdin. Raises NoImages."""
    if STANDARD not in given:
        yield list(given)
        return
    with TemporaryDirectory(prefix="goca-") as folder:
        file = Path(folder) / "stdin"
        if not file.write_bytes(sys.stdin.buffer.read()):
            raise NoImages("- stands for standard input, which is empty; expected the bytes of an image file")
        yield [str(file) if text == STANDARD else text for text in given]


def find(given: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and patterns name, each once, in the order given.

    Folders and patterns leave out what `goca segment` wrote before. Raises NoImages.
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
            raise NoImages(f"the folder {text} holds no image ({kinds}); folders in it are not searched")
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
