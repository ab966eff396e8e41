"""A cache in the user's cache folder for answers about many files, valid until one of them changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from goca.files.atomic import whole_file


def cache_folder() -> Path:
    """Return $GOCA_CACHE if set, else $XDG_CACHE_HOME/goca or ~/.cache/goca."""
    own, shared = os.environ.get("GOCA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "goca"


def remembered(question: Sequence[str], files: Iterable[Path], answer: Callable[[], str]) -> str:
    """Return the cached answer to a question about files; compute it again if a file's size or time has changed.

    If the cache folder cannot be written, the answer is computed every time.
    """
    key = hashlib.sha256("\0".join(question).encode("utf-8", "surrogateescape"))
    for path in files:
        with contextlib.suppress(OSError):
            found = path.stat()
            key.update(f"\0{found.st_size} {found.st_mtime_ns}".encode())
    place = cache_folder() / "labels" / f"{key.hexdigest()[:32]}.txt"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if text := place.read_text(encoding="utf-8"):
            return text
    text = answer()
    with contextlib.suppress(OSError), whole_file(place) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text
