"""Texts as file names that cannot leave their folder, and names as a list in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')
LONGEST = 150  # bytes of a name; file systems take 255, and endings are to be added


def file_name(text: str) -> str:
    """The text as part of a file name: no separators or control characters, no dots or spaces at its ends, not long."""
    safe = UNSAFE.sub("_", text).strip(" .")
    return safe.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore") or "_"


def distinct(texts: Iterable[str]) -> list[str]:
    """File names for the texts, in order; a name that is taken gets -2, -3, ... Capitals make no difference."""
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
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
