"""Tags of photos, from a CSV or JSON file, or from the names of the photos' folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goca.files.bounded_json import JSONUnreadable, parse_json
from goca.files.names import listed
from goca.files.text import read_text
from goca.labelsets.errors import TagsMismatch, TagsUnreadable
from goca.open.query import clean

FOLDERS = "folders"  # in place of a file: the folders' names are the tags
HEADS = ("image", "file", "filename", "file_name", "name", "path", "photo")  # first cells of a header line
FORMS = """expected one of these forms:
    CSV    photo.jpg,cat,grass      or   photo.jpg,"cat, grass"     with or without a header line
    JSON   {"photo.jpg": ["cat", "grass"]},  {"photo.jpg": "cat, grass"}  or  {"photo.jpg": {"caption": "cat, grass"}}
    folders                         photos/cat/photo.jpg has the tag cat"""

Tags = dict[str, tuple[str, ...]]


def read_tags(given: str, photos: Sequence[str], missing: bool = False) -> Tags:
    """Tags of each photo, in the order of photos, in lower case and without repetitions.

    given    a file name, or "folders"
    photos   relative paths of the photos, with /; a file of tags may give a photo by its path, by its file name, or by
             the name without its suffix, if that is unique
    missing  whether photos without tags and tags without a photo are skipped; otherwise they raise an error
    Raises TagsUnreadable, TagsMismatch.
    """
    if given == FOLDERS:
        found = {photo: tuple(filter(None, map(clean, Path(photo).parts[:-1]))) for photo in photos}
        return matched(found, photos, missing)
    path = Path(given).expanduser()
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TagsUnreadable(f"the tags {given} cannot be read: {error}; {FORMS}") from None
    rows = from_json(path, text) if text.lstrip()[:1] in ("{", "[") else from_csv(path, text)
    return matched(joined(rows), photos, missing)


def from_csv(path: Path, text: str) -> list[tuple[str, list[str]]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise TagsUnreadable(f"{path} is not CSV ({error}); {FORMS}") from None
    if rows and rows[0][0].strip().lower() in HEADS:
        rows = rows[1:]
    if bare := next((row for row in rows if not row[0].strip()), None):
        raise TagsUnreadable(f"{path}: the row {','.join(bare)!r} names no photo; {FORMS}")
    return [(row[0].strip(), row[1:]) for row in rows]


def from_json(path: Path, text: str) -> list[tuple[str, list[str]]]:
    try:
        content = parse_json(text)
    except JSONUnreadable as error:
        raise TagsUnreadable(f"{path} is not JSON ({error}); {FORMS}") from None
    if not isinstance(content, Mapping):
        raise TagsUnreadable(f"{path} holds no object; {FORMS}")
    return [(name, texts_of(path, name, value)) for name, value in content.items()]


def texts_of(path: Path, name: str, value: Any) -> list[str]:
    value = value.get("caption") if isinstance(value, Mapping) else value
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise TagsUnreadable(f"{path}: the tags of {name!r} are neither a text nor a list of texts; {FORMS}")
    return texts


def joined(rows: Iterable[tuple[str, Sequence[str]]]) -> Tags:
    """Split cells with several tags at commas and semicolons, and combine all rows of a photo."""
    found: dict[str, dict[str, None]] = {}
    for name, cells in rows:
        tags = [clean(part) for cell in cells for part in cell.replace(";", ",").split(",")]
        found.setdefault(name.replace("\\", "/"), {}).update(dict.fromkeys(filter(None, tags)))
    return {name: tuple(tags) for name, tags in found.items()}


def matched(tags: Mapping[str, tuple[str, ...]], photos: Sequence[str], missing: bool) -> Tags:
    """Tags by photo. Raises TagsMismatch."""
    names: dict[str, set[str]] = {}
    for photo in photos:
        for name in {photo, Path(photo).name, Path(photo).stem}:
            names.setdefault(name, set()).add(photo)
    found: dict[str, dict[str, None]] = {}
    for name, own in tags.items():
        name = name.removeprefix("./")
        fits = {name} if name in photos else names.get(name, set())
        if len(fits) > 1:
            raise TagsMismatch(
                f"{name!r} names {len(fits)} photos ({listed(sorted(fits))}); give the path in the folder"
            )
        for photo in fits:
            found.setdefault(photo, {}).update(dict.fromkeys(own))
        if not fits and not missing:
            strange = [each for each in tags if each.removeprefix("./") not in names]
            raise TagsMismatch(
                f"{len(strange)} tagged photos are not there ({listed(strange)}); correct their names, or give "
                "--allow-missing to label the others"
            )
    bare = [photo for photo in photos if not found.get(photo)]
    if bare and (not missing or len(bare) == len(photos)):
        raise TagsMismatch(
            f"{len(bare)} of {len(photos)} photos have no tags ({listed(bare)}); add them, or give --allow-missing to "
            "leave these photos out"
        )
    return {photo: tuple(found[photo]) for photo in photos if found.get(photo)}
