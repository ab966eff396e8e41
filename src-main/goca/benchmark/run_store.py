"""A run's folder: its settings, and one line of counts per image, written during the run.

    settings.json     all settings that affect the counts; a run with other settings is refused
    counts.jsonl      one line per image, with a checksum; further processes write counts.1.jsonl, counts.2.jsonl, ...

        {"origin": id, "device": ..., "revision": ..., ...}     where the counts with that id come from
        {"image": name, "cells": [...], "by": id, ...}          or {"image": name, "skipped": reason}

A line is on disk when its image is done. A line that was only partly written by a lost process is dropped, and its
image is counted again. An image that has changed is counted again in a line with "again": 1, 2, ...; the highest one is
used.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from goca.errors import GocaError
from goca.evaluation.metrics import packed
from goca.files import atomic
from goca.files.atomic import FileNotWritten, encoded, sweep
from goca.files.bounded_json import read_json
from goca.files.log import Record, append_line, open_log, sealed, sealed_lines, sealed_lines_from


class RunError(GocaError, ValueError):
    """A run folder cannot be used; the message says why and what to do."""


class RunMismatch(RunError):
    """A run folder has counts made with other settings; the message shows the differences."""


CELLS = b'"cells":[['  # before the counts in a line
OURS = ("counts*.jsonl", "results.json", "evaluation.txt", "report.html", "gallery", "label_maps")  # what a run writes
LATER = ("class_names", "weights", "denoiser weights")  # settings that are missing in folders of earlier versions
PER_IMAGE = ("annotations", "labels")  # prompt files; images whose prompts changed are counted again


class RunStore:
    """The run folder of one process. Raises RunMismatch for other settings, RunError if it cannot be used.

    settings  everything that affects the counts, as nested mappings for JSON
    rank      this process's number; each process writes its own file and reads all of them
    assumed   values of settings that a folder does not contain, as nested mappings

    A run that fails before anything is counted removes the folder that it created.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        rank: int = 0,
        assumed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.folder = Path(folder)
        self._made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            self._new = self._check_settings(_plain(settings), _plain(assumed))
        except OSError as error:
            raise RunError(f"run_dir={folder} cannot be created: {error}") from None
        self._origin: str | None = None
        self._known: dict[str, Record] = {}
        self._origins: dict[str, Record] = {}
        self._ends: dict[Path, int] = {}  # position up to which each log was read
        self._path = self.folder / (f"counts.{rank}.jsonl" if rank else "counts.jsonl")
        try:
            self._file = open_log(self._path)
        except BlockingIOError:
            busy = f"another process is writing to {self._path}; wait for it, or choose another run_dir"
            raise RunError(busy) from None
        except OSError as error:
            raise RunError(f"{self._path} cannot be opened: {error}") from None
        for place in (self.folder, self.folder / "gallery"):
            sweep(place)

    def records(self) -> dict[str, Record]:
        """Image -> its record, of all processes; counts override "skipped", later records override earlier ones.

        "cells" is an array (see `packed`). Only new lines are read. Raises RunError if the folder is gone.
        """
        self._check_there()
        self._read()
        return dict(self._known)

    def origins(self) -> dict[str, Record]:
        """The origins of counts, by the id that their records have under "by"."""
        self._read()
        return dict(self._origins)

    def declare(self, origin: Mapping[str, Any]) -> None:
        """Set the origin of the counts that are appended from now on: device, versions, ..."""
        line = json.dumps(origin, sort_keys=True)
        self._origin = f"{zlib.crc32(line.encode()):08x}"
        if self._origin not in self.origins():
            self._write({"origin": self._origin, **json.loads(line)})

    def append(self, record: Record) -> None:
        """Append the record of one image and flush it. Raises RunError on failure, which leaves the file unchanged."""
        if "cells" in record:
            cells = record["cells"]
            record = {**record, "cells": cells.tolist() if isinstance(cells, np.ndarray) else cells}
            record |= {"by": self._origin} if self._origin else {}
        self._write(record)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        empty = os.fstat(self._file.fileno()).st_size == 0
        self.close()
        if kind is not None and empty and self._new:
            self._leave()

    def _leave(self) -> None:
        """Remove what this process created, unless another process uses the folder."""
        names = {path.name for path in self.folder.glob("*")}
        if names <= {"settings.json", self._path.name}:
            with contextlib.suppress(OSError):
                for name in names:
                    (self.folder / name).unlink()
                if self._made:
                    self.folder.rmdir()

    def _refuse_others(self) -> None:
        """Raises RunError rather than overwrite files that no run has written, or files outside the folder."""
        found = sorted(path for pattern in OURS for path in self.folder.glob(pattern))
        if found and not (self.folder / "settings.json").exists():
            raise RunError(
                f"run_dir={self.folder} is not a run folder: it has no settings.json, and a run would overwrite"
                f" {', '.join(path.name for path in found)}; choose another run_dir"
            )
        if links := [path.name for path in found if path.is_symlink()]:
            raise RunError(f"run_dir={self.folder}: {links[0]} is a link to elsewhere; put the file in its place")

    def _check_there(self) -> None:
        """Raises RunError if this process's log is no longer in the folder."""
        own = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            raise RunError(
                f"run_dir={self.folder} was removed or moved while the run was writing to it; the run ends here."
                " If it was moved, run again with its new location as run_dir to resume"
            )

    def _check_settings(self, settings: dict[str, Any], assumed: dict[str, Any]) -> bool:
        """Compare the settings with the folder's; returns whether the folder had none. Raises RunMismatch."""
        path = self.folder / "settings.json"
        try:
            stored = read_json(path)
        except FileNotFoundError:
            write_text(path, json.dumps(settings, indent=1) + "\n")
            return True
        except ValueError as error:
            raise RunError(f"{path} is not JSON ({error}); move run_dir={self.folder} away and run again") from None
        if not isinstance(stored, dict):
            raise RunError(f"{path} contains no settings; move run_dir={self.folder} away and run again")
        added = {key: settings[key] for key in LATER if key in settings and key not in stored}
        changed = _differences(_filled({**stored, **added}, assumed, settings), settings)
        prompts = {key: new for key, old, new in changed if key in PER_IMAGE and old and new}
        if (others := [each for each in changed if each[0] not in prompts]) or (prompts and not self._say_prompts()):
            lines = "\n".join(f"    {key}: {old!r} in the folder, {new!r} now" for key, old, new in others or changed)
            raise RunMismatch(
                f"run_dir={self.folder} has counts made with other settings:\n{lines}\n"
                "Choose another run_dir, or use the settings of the folder to resume its run."
            )
        if added or prompts:
            write_text(path, json.dumps({**stored, **added, **prompts}, indent=1) + "\n")
        return False

    def _say_prompts(self) -> bool:
        """Whether all counts record their prompts, so that changed prompts are detected."""
        lines = (record for path in self._logs() for record in sealed_lines(path))
        return all("prompt" in record for record in lines if "cells" in record)

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("counts*.jsonl"))

    def _read(self) -> None:
        """Read the new lines of all logs."""
        for path in self._logs():
            for end, record in sealed_lines_from(path, self._ends.get(path, 0), parse_record):
                self._ends[path] = end
                if "origin" in record:
                    self._origins[record.pop("origin")] = record
                elif "image" in record:
                    self._take(record)

    def _take(self, record: Record) -> None:
        """Store a record, unless a known one overrides it."""
        earlier, order = self._known.get(record["image"]), _order(record)
        if earlier is None or order > _order(earlier) or (order == _order(earlier) and "skipped" in record):
            self._known[record["image"]] = record | ({"cells": packed(record["cells"])} if "cells" in record else {})

    def _write(self, record: Record) -> None:
        self._check_there()
        try:
            append_line(self._file, sealed(record))
        except OSError as error:
            raise RunError(
                f"{self._file.name} cannot be written ({error}); free some space and run again: counted images are kept"
            ) from error


def parse_record(line: bytes) -> Any:
    """A record from its JSON. Counts are parsed directly into an array, which takes a quarter of the time."""
    start = line.find(CELLS) + len(CELLS)
    end = line.find(b"]]", start)
    rows = line[start:end].split(b"],[") if start >= len(CELLS) and end > 0 else []
    text = b",".join(rows)
    if not rows or any(row.count(b",") != 3 for row in rows) or text.translate(None, b"0123456789,"):
        return json.loads(line)
    numbers = np.fromstring(text, np.int64, sep=",")
    if len(numbers) != 4 * len(rows):
        return json.loads(line)
    return json.loads(line[: start - 2] + b"[]" + line[end + 2 :]) | {"cells": numbers.reshape(-1, 4)}


def write_text(path: Path, text: str) -> None:
    """Write a file of a run atomically, in UTF-8. Raises RunError."""
    write_bytes(path, encoded(text))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of a run atomically; its folder is created if necessary. Raises RunError."""
    try:
        atomic.write_bytes(path, content)
    except FileNotWritten as error:
        raise RunError(str(error)) from error


def _order(record: Record) -> tuple[int, bool]:
    """A sort key of an image's records: counted again more often, then counted rather than skipped."""
    return record.get("again", 0), "skipped" not in record


_ABSENT = "nothing"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings), default=str))


def _filled(stored: Any, assumed: Any, settings: Any) -> Any:
    """The stored settings, with the assumed values of those that are missing."""
    if not isinstance(stored, dict) or not isinstance(assumed, dict) or not isinstance(settings, dict):
        return stored
    absent = {key: assumed[key] for key in settings if key in assumed and key not in stored}
    return absent | {key: _filled(old, assumed.get(key), settings.get(key)) for key, old in stored.items()}


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(name for name in new if name not in old)]
        prefix = f"{key}." if key else ""
        found = (_differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{prefix}{name}") for name in keys)
        return [each for part in found for each in part]
    return [] if old == new else [(key, old, new)]
