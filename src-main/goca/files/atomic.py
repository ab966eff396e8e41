"""Atomic writes: a file is complete, or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.errors import GocaError

if TYPE_CHECKING:
    from PIL import Image

TEMPORARY = re.compile(r".+\.((?P<host>[0-9a-f]{6})-(?P<process>\d+)-)?[0-9a-f]{8}\.tmp")
OLD = 24 * 3600  # seconds after which a temporary file of another machine is nobody's any more


class FileNotWritten(GocaError, ValueError):
    """A file cannot be written; the message says which, and why."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file next to `path` to write to; at the end it is flushed and renamed, or on an error removed.

    The folder is created if necessary. Temporary files of killed processes are recognised by name: see `sweep`.
    Errors: OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encoded(text: str) -> bytes:
    """A text in UTF-8; characters that UTF-8 cannot encode are escaped."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a file atomically, in UTF-8; its folder is created if necessary. Raises FileNotWritten."""
    return write_bytes(path, encoded(text))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file atomically; its folder is created if necessary. Raises FileNotWritten."""
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise FileNotWritten(f"{path} cannot be written: {error}") from error
    return Path(path)


def write_png(path: str | os.PathLike[str], image: Image.Image) -> Path:
    """Write an image as a PNG, atomically; its folder is created if necessary. Errors: OSError."""
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")
    return Path(path)


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as a compressed .npz, atomically. Errors: OSError."""
    import numpy as np

    with whole_file(path) as temporary, temporary.open("wb") as file:  # by name, numpy would add a suffix
        np.savez_compressed(file, **arrays)


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files of `whole_file` whose process has ended; those of other machines after a day."""
    removed = []
    for path in Path(folder).glob("*.tmp"):
        if (match := TEMPORARY.fullmatch(path.name)) is None:
            continue
        with contextlib.suppress(OSError):
            if match["host"] == host():
                left = not is_running(int(match["process"]))
            else:
                left = time.time() - path.stat().st_mtime > OLD
            if left:
                path.unlink()
                removed.append(path)
    return removed


def is_running(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@cache
def host() -> str:
    """An identifier of this machine in the names of temporary files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
