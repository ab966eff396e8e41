"""Pictures as people give them on a command line: files, folders, patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from goca.errors import GocaError

# what is taken from a folder or a pattern; a file that is named itself is opened whatever its ending
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2")
RESULTS = ("-labels.png", "-overlay.png")  # endings of what `goca segment` writes, beside a .json


class NoPictures(GocaError, ValueError):
    """A path, folder or pattern without a picture."""


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
