"""What was found out about many files, kept until one of them changes: in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from goca.files.atomic import whole_file


def cache_folder() -> Path:
    """$GOCA_CACHE; where that is not set $XDG_CACHE_HOME/goca, or ~/.cache/goca."""
    own, shared = os.environ.get("GOCA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "goca"


def remembered(question: Sequence[str], files: Iterable[Path], answer: Callable[[], str]) -> str:
    """The answer to a question about files; asked again when the size or time of one has changed.

    A cache folder that cannot be written is no hindrance: the answer is then found out every time.
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
