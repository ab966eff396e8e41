"""Vocabularies, lists of names to look for: the packaged class tables, or a file of your own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from goca.datasets.base import TABLES, DatasetError, class_table
from goca.files.bounded_json import JSONUnreadable, parse_json
from goca.files.text import read_text

ALIASES = {"coco": "coco-object"}
MARKS = ",;()[]{}"  # these separate or group words in a prompt, so no name may hold them
FORM = 'one name per line, or JSON with a list of names per class: [[], ["cat"], ["person", "man"]]'


class VocabularyError(DatasetError):
    """An unknown vocabulary, or a file of another form; the message says what is expected."""


def vocabularies() -> list[str]:
    """The names of the packaged vocabularies."""
    tables = [path.stem for path in TABLES.glob("*.json") if "." not in path.stem]
    return sorted([*tables, *ALIASES])


def read_vocabulary(given: str) -> list[list[str]]:
    """Read names per class id, [] for id 0, the background. Raises VocabularyError.

    given  a packaged vocabulary (coco, ade20k, voc, ...), or a file: one name per line in UTF-8, or JSON in the form
           of the class tables: a list with a list of names per class, an empty one for the background
    """
    if given in vocabularies():
        return class_table(ALIASES.get(given, given), TABLES)
    path = Path(given).expanduser()
    if not path.is_file():
        known = ", ".join(vocabularies())
        raise VocabularyError(f"{given!r} is neither a vocabulary nor a file; expected {known}, or a file: {FORM}")
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path} cannot be read as text: {error}; expected {FORM}") from None
    table = from_json(path, text) if text.lstrip()[:1] in ("[", "{") else from_lines(path, text)
    if not any(table):
        raise VocabularyError(f"{path} holds no names; expected {FORM}")
    return table if not table[0] else [[], *table]


def from_lines(path: Path, text: str) -> list[list[str]]:
    """Read one name per line; empty lines are skipped."""
    numbered = [(number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), start=1)]
    return checked(path, [(f"line {number}", [name]) for number, name in numbered if name])


def from_json(path: Path, text: str) -> list[list[str]]:
    """Read a list with a list of names per class, in any case; only the first list may be empty."""
    try:
        table = parse_json(text)
    except JSONUnreadable as error:
        raise VocabularyError(f"{path} is not JSON ({error}); expected {FORM}") from None
    if not isinstance(table, list) or not all(is_names(names) for names in table):
        wrong = table if not isinstance(table, list) else next(names for names in table if not is_names(names))
        raise VocabularyError(f"{path}: found {shown(wrong)}; expected {FORM}")
    if empty := [number for number, names in enumerate(table) if number and not names]:
        raise VocabularyError(f"{path}: class {empty[0]} has no name; only class 0, the background, may have none")
    return checked(
        path, [(f"class {number}", [" ".join(name.split()) for name in names]) for number, names in enumerate(table)]
    )


def is_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def checked(path: Path, places: Sequence[tuple[str, list[str]]]) -> list[list[str]]:
    """Return the names if each is a word and none occurs twice. Raises VocabularyError with the position."""
    seen: dict[str, str] = {}
    for place, names in places:
        for name in names:
            if wrong := next(faults(name), ""):
                raise VocabularyError(f"{path}, {place}: {shown(name)} {wrong}; expected {FORM}")
            if (first := seen.setdefault(name.lower(), place)) != place:
                raise VocabularyError(f"{path}, {place}: {shown(name)} occurs already in {first}; remove one of them")
    return [names for _, names in places]


def faults(name: str) -> Iterator[str]:
    """Yield the reasons why a text cannot be a name."""
    if mark := next((mark for mark in MARKS if mark in name), ""):
        yield f"holds {mark!r}"
    if not any(character.isalnum() for character in name):
        yield "holds no letter"
    if not name.isprintable():
        yield "holds control characters"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
