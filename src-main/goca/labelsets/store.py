"""The folder of a labelled set: settings, one log line per finished image, label maps.

settings.json      all settings that affect the files; a folder with other settings is refused
log.jsonl          {"name": ..., ...} per image, with a checksum; further processes write log.1.jsonl, log.2.jsonl, ...
labels/NAME.png    palette PNG of class ids; images/NAME.png if images are generated

A line is written after its files, which are written atomically. Work is distributed in batches that depend only on the
settings, and an incomplete batch is repeated as a whole, so a resumed run produces the same files as an uninterrupted
one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from goca.drawing.palettes import palette_image
from goca.files.atomic import sweep, write_png, write_text
from goca.files.bounded_json import JSONUnreadable, read_json
from goca.files.log import Record, append_line, open_log, sealed, sealed_lines
from goca.labelsets.errors import LabelSetError

Item = TypeVar("Item")


class Store:
    """A labelled set's folder, opened by one process. Raises LabelSetError.

    settings  everything that affects the files, for JSON
    rank      number of the process, from 0
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._check(json.loads(json.dumps(settings)))
        for part in (folder, folder / "labels", folder / "images"):
            sweep(part)
        path = folder / (f"log.{rank}.jsonl" if rank else "log.jsonl")
        try:
            self._file = open_log(path)
        except BlockingIOError:
            raise LabelSetError(f"another process is writing to {path}; wait for it, or choose another --out") from None

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "settings.json"
        try:
            stored = read_json(path)
        except FileNotFoundError:
            write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        except JSONUnreadable as error:
            raise LabelSetError(f"{path} is not JSON ({error}); choose another --out folder") from None
        stored = stored if isinstance(stored, dict) else {}
        changed = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
        if changed:
            lines = "\n".join(f"    {key}: {stored.get(key)!r} there, {settings.get(key)!r} now" for key in changed)
            raise LabelSetError(f"{self.folder} holds a set made with other settings; choose another --out:\n{lines}")

    def records(self) -> dict[str, Record]:
        """Finished images: name -> record."""
        paths = sorted(self.folder.glob("log*.jsonl"))
        return {line["name"]: line for path in paths for line in sealed_lines(path) if "name" in line}

    def add(self, record: Record) -> None:
        """Record an image whose files are written."""
        append_line(self._file, sealed(record))

    def close(self) -> None:
        self._file.close()

    def save_label(self, name: str, label: np.ndarray) -> None:
        """Write labels/NAME.png, a palette PNG."""
        write_png(self.folder / "labels" / f"{name}.png", palette_image(label))

    def save_image(self, name: str, image: Image.Image) -> None:
        """Write images/NAME.png."""
        write_png(self.folder / "images" / f"{name}.png", image)

    def label(self, name: str) -> np.ndarray:
        """The label map of a finished image   uint8 [H, W]"""
        with Image.open(self.folder / "labels" / f"{name}.png") as image:
            return np.asarray(image)


def open_batches(
    items: Sequence[Item], names: Sequence[str], done: Mapping[str, Record], size: int, rank: int = 0, ranks: int = 1
) -> Iterator[list[Item]]:
    """The unfinished batches of one process; batches are formed only by the order of items."""
    pairs = list(zip(items, names, strict=True))
    for number, start in enumerate(range(0, len(pairs), size)):
        batch = pairs[start : start + size]
        if number % ranks == rank and not all(name in done for _, name in batch):
            yield [item for item, _ in batch]
