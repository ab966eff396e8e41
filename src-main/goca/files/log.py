"""Append-only logs: one JSON record per line, with a checksum; a line counts once it is complete on disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

SEAL = b'"crc32":'  # a quote within a text has a backslash before it, so that this stands at a line's end alone
Record = dict[str, Any]  # one line of a log
LOCKLESS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # file systems of some clusters know no locks


def open_log(path: Path) -> FileIO:
    """Open a log for appending, locked for this process; an incomplete line of another process is dropped.

    Raises BlockingIOError while another process has it open, OSError if it cannot be opened or is a link.
    """
    file = FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    try:
        _lock(file)
        file.seek(0)
        content = file.readall()
        if (end := content.rfind(b"\n") + 1) < len(content):
            file.truncate(end)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: FileIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise  # without locks two writers would do work twice, but checksums still keep counts right


def append_line(file: FileIO, line: bytes) -> None:
    """Append a line to a log and flush it to disk. Raises OSError on failure; the log is then unchanged."""
    before = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError("the disk took only a part of the line")
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # what stays of it is dropped when the log is opened again
            file.truncate(before)
        raise


def sealed(record: Record) -> bytes:
    body = json.dumps(record, separators=(",", ":"))
    return json.dumps({**record, "crc32": zlib.crc32(body.encode())}, separators=(",", ":")).encode() + b"\n"


def sealed_lines(path: Path) -> Iterator[Record]:
    """The records of a file with correct checksums; other lines were never finished."""
    return (record for _, record in sealed_lines_from(path, 0))


def sealed_lines_from(
    path: Path, start: int, parse: Callable[[bytes], Any] = json.loads
) -> Iterator[tuple[int, Record]]:
    """The records from a position on, each with the position of its line's end; read line by line.

    parse   converts a line without its checksum to a record; raises ValueError if it is invalid
    """
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for line in file:
            end += len(line)
            head, _, checksum = line.rpartition(SEAL)
            body = head.removesuffix(b",") + b"}"
            if checksum != b"%d}\n" % zlib.crc32(body):
                continue
            try:
                record = parse(body)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield end, record
