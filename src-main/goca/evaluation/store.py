"""A run's folder: its settings, and one line of counts per image, written as the run goes.

    settings.json     what the counts depend on; a run with other settings is refused
    counts.jsonl      one line per image, with a checksum; further processes write counts.1.jsonl, counts.2.jsonl, ...

A line is written whole or not at all: what a lost process leaves half-written is dropped, and its image done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # {"image": id, "cells": [...], ...} or {"image": id, "skipped": reason}


class RunError(ValueError):
    """A run folder that cannot be used; the message says why and what to do."""


class RunMismatch(RunError):
    """A run folder that holds counts made with other settings; the message shows the difference."""


class RunStore:
    """The run folder of one process. Raises RunMismatch for other settings, RunError where it cannot be used.

    settings  whatever the counts depend on, as nested mappings that JSON can hold
    rank      this process's number; each writes a file of its own and reads all of them
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run_dir={folder} cannot be made: {error}") from None
        self._check_settings(json.loads(json.dumps(settings, default=str)))
        self._file = (self.folder / (f"counts.{rank}.jsonl" if rank else "counts.jsonl")).open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            busy = f"another process is writing to {self._file.name}; wait for it, or choose another run_dir"
            raise RunError(busy) from None
        self._drop_torn_line()

    def records(self) -> dict[str, Record]:
        """Everything known by now, of all processes, by image; counts beat an earlier "skipped"."""
        known: dict[str, Record] = {}
        for path in sorted(self.folder.glob("counts*.jsonl")):
            for record in sealed_lines(path):
                earlier = known.get(record["image"])
                if earlier is None or ("skipped" in earlier):
                    known[record["image"]] = record
        return known

    def append(self, record: Record) -> None:
        """Add one image. Raises RunError if it cannot be written whole; the file is then as it was."""
        line = sealed(record)
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError("the disk took only a part of the line")
        except OSError as error:
            self._file.truncate(before)
            raise RunError(
                f"{self._file.name} cannot be written ({error}); make room and run again: what is counted stays counted"
            ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "settings.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_text(path, json.dumps(settings, indent=1) + "\n")
            return
        except ValueError as error:
            raise RunError(f"{path} is not JSON ({error}); move run_dir={self.folder} away and run again") from None
        if changed := _differences(stored, settings):
            lines = "\n".join(f"    {key}: {old!r} in the folder, {new!r} now" for key, old, new in changed)
            raise RunMismatch(
                f"run_dir={self.folder} holds counts made with other settings:\n{lines}\n"
                "Choose another run_dir, or run with the settings of the folder to go on with it."
            )

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._file.truncate(end)


def write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error}") from error


def sealed(record: Record) -> bytes:
    body = json.dumps(record, separators=(",", ":"))
    return json.dumps({**record, "crc32": zlib.crc32(body.encode())}, separators=(",", ":")).encode() + b"\n"


def sealed_lines(path: Path) -> Iterator[Record]:
    """The records of a file whose checksum is right; whatever else is in it was never finished."""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.pop("crc32", None) is not None and sealed(record) == line:
            yield record


_ABSENT = "nothing"


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(name for name in new if name not in old)]
        prefix = f"{key}." if key else ""
        found = (_differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{prefix}{name}") for name in keys)
        return [each for part in found for each in part]
    return [] if old == new else [(key, old, new)]
