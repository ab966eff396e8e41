"""Safe file names from texts, and lists of names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')
LONGEST = 150  # bytes of a name; file systems take 255, and endings are to be added


def file_name(text: str) -> str:
    """A text as part of a file name: without separators, control characters, dots or spaces at its ends; shortened."""
    safe = UNSAFE.sub("_", text).strip(" .")
    return safe.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore") or "_"


def distinct(texts: Iterable[str]) -> list[str]:
    """File names for the texts, in order; repeated names get -2, -3, ... Upper and lower case are not distinguished."""
    names: list[str] = []
    first = [file_name(text) for text in texts]
    taken: set[str] = set()
    reserved = {name.casefold() for name in first}
    for name in first:
        new, number = name, 1
        while new.casefold() in taken or (number > 1 and new.casefold() in reserved):
            number += 1
            new = f"{name}-{number}"
        taken.add(new.casefold())
        names.append(new)
    return names


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
