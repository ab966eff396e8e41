"""Checksums of the inputs of counts: files, prompts, a pipeline's weights."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from goca.datasets import Sample
from goca.embedded import resolve
from goca.files.bounded_json import parse_json

WHOLE = 64 << 20  # bytes; larger weight files are hashed by samples of every tensor
PIECE = 256  # bytes at a tensor's beginning and at its middle
WEIGHTS = (".safetensors", ".json", ".txt", ".model")  # suffixes of the files that make up a pipeline


def of_file(path: str | os.PathLike[str]) -> str:
    """A checksum of a file's content, independent of its location."""
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


def of_text(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


@dataclass(frozen=True)
class MadeFrom:
    """Checks whether the inputs of an image's counts have changed.

    root    the data set's folder, to which names in records are relative; None: they are full paths
    prompt  image file name -> the text from which its prompt is made; None if there is none
    """

    root: Path | None = None
    prompt: Callable[[str], str | None] = lambda name: None

    def of(self, sample: Sample) -> dict[str, Any]:
        """For an image's record: size, time and checksum of its files, and a checksum of its prompt."""
        paths = [path for path in (sample.image_path, sample.label_path, *sample.sources) if path is not None]
        found = {"files": {self._name(path): marks for path in paths if (marks := _marks(path)) is not None}}
        prompt = self.prompt(sample.name) if paths else None
        return found | ({} if prompt is None else {"prompt": of_text(prompt)})

    def changed(self, record: Mapping[str, Any]) -> str:
        """Which input of an image differs from its record, as text; "" if none does, or if the record has no inputs."""
        files = record.get("files") or {}
        for name, marks in files.items():
            path = Path(name) if self.root is None else self.root / name
            if reason := _difference(path, marks):
                return f"{path.name} {reason}"
        if "prompt" in record and files:
            now = self.prompt(Path(next(iter(files))).name)
            if now is None or of_text(now) != record["prompt"]:
                return "its prompt was changed"
        return ""

    def _name(self, path: Path) -> str:
        inside = self.root is not None and path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if inside else str(path)  # type: ignore[arg-type]


def _marks(path: Path) -> list[int] | None:
    """Size, modification time [ns] and checksum of a file; None if it cannot be read."""
    try:
        found = path.stat()
        return [found.st_size, found.st_mtime_ns, _checksum(path, found.st_size, found.st_mtime_ns)]
    except OSError:
        return None


@lru_cache(maxsize=256)
def _checksum(path: Path, size: int, changed: int) -> int:
    return zlib.crc32(path.read_bytes())


def _difference(path: Path, marks: list[int]) -> str:
    try:
        found = os.stat(path)
        if [found.st_size, found.st_mtime_ns] == marks[:2]:
            return ""
        if found.st_size == marks[0] and _checksum(path, found.st_size, found.st_mtime_ns) == marks[2]:
            return ""  # copied or touched, with the same content
        return "was changed"
    except OSError:
        return "is gone"


# ---- a pipeline's weights


def of_pipeline(location: str | None) -> str | None:
    """A checksum of a pipeline folder's content, independent of its location; None for other locations (hub ids).

    Files up to 64 MiB are hashed completely; of a larger one, the size, the header and samples of every tensor. This
    distinguishes weights that were trained further, without reading gigabytes.
    """
    try:
        folder = Path(resolve(location or "")).expanduser()
    except FileNotFoundError:
        return None
    if not location or not folder.is_dir():
        return None
    total = hashlib.sha256()
    for path in _read_from(folder):
        found = path.stat()
        total.update(f"{path.relative_to(folder).as_posix()}\0{found.st_size}\0".encode())
        total.update(_content(path, found.st_size, found.st_mtime_ns))
    return f"sha256:{total.hexdigest()[:16]}"


def _read_from(folder: Path) -> list[Path]:
    """The files that make up a pipeline."""
    files = (*folder.glob("*.json"), *folder.glob("*/*"))
    return sorted(path for path in files if path.suffix in WEIGHTS and path.is_file() and path.name[0] != ".")


@lru_cache(maxsize=1024)
def _content(path: Path, size: int, changed: int) -> bytes:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start, length in [(0, size)] if size <= WHOLE else _pieces(path, size):
            file.seek(start)
            while length > 0 and (block := file.read(min(length, 1 << 20))):
                found.update(block)
                length -= len(block)
    return found.digest()


def _pieces(path: Path, size: int) -> Iterable[tuple[int, int]]:
    """(start, bytes) of a large file: its header and two pieces of every tensor, or pieces at equal distances."""
    yield 0, 4096
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = parse_json(file.read(length)) if length < 100 << 20 else None
        yield 0, 8 + length
        starts = [each["data_offsets"] for each in header.values() if "data_offsets" in each]
        yield from _around(((8 + length + begin, 8 + length + end) for begin, end in starts))
    except (ValueError, TypeError, AttributeError, KeyError, OSError):
        yield from _around((start, start + (1 << 20)) for start in range(0, size, 1 << 20))


def _around(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in spans:
        if not 0 <= start <= end:
            raise ValueError("offsets outside the file")
        yield start, min(PIECE, end - start)
        yield (start + end) // 2, min(PIECE, (end - start) // 2)
