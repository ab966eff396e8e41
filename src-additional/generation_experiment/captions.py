"""Read captions to generate from: a CSV table, COCO's captions, a labels file, or plain text."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.files.bounded_json import JSONUnreadable, parse_json
from goca.files.text import read_text

NAME = re.compile(r"[\w-][\w.-]*")  # an image's name within its folder
CAPTION_COLUMNS = ("caption", "text", "prompt")  # columns of a CSV table; the first that exists is used
ID_FIRST = re.compile(r'"?\d+"?,')  # a row of a table: a number, then a comma
ID_COLUMNS = ("image_id", "id", "image", "file_name", "filename", "name")


class CaptionsError(GocaError, ValueError):
    """A captions file has another format, or duplicate image names."""


def read_captions(path: str | Path, n: int | None = None) -> dict[str, str]:
    """Read image name -> caption in the file's order; the first `n` (None: all).

    a CSV table with a header: one of ID_COLUMNS names the images (without one: 000000, ...), one of CAPTION_COLUMNS
    holds the captions; quotes and line breaks within a caption as in RFC 4180
    COCO's {"annotations": [{"image_id", "caption"}, ...]}: the first caption of each image, by image id
    a labels file {image file name: {"caption": text}} or {name: text}
    a JSON list of captions, or a text file with one per line: named 000000, 000001, ...
    Raises CaptionsError.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionsError(f"captions={path} cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            pairs = from_json(parse_json(text), path)
        except JSONUnreadable as error:
            raise CaptionsError(f"{path} is not JSON ({error})") from None
    elif path.suffix == ".csv" or looks_like_table(text):
        pairs = from_table(text, path)
    else:
        pairs = numbered([line.strip() for line in text.splitlines() if line.strip()])
    captions = checked(pairs, path)
    if n is not None and not 0 < n <= len(captions):
        raise CaptionsError(f"n={n}, but {path} has captions for {len(captions)} images")
    return dict(list(captions.items())[:n])


def looks_like_table(text: str) -> bool:
    """Whether a text looks like a CSV table: a header with captions, or rows that begin with a number."""
    lines = [line.strip() for line in text.strip().split("\n", 5)[:5]]
    header = {name.strip(' "').lower() for name in lines[0].split(",")}
    return bool(header & {*CAPTION_COLUMNS} and header & {*ID_COLUMNS}) or all(ID_FIRST.match(line) for line in lines)


def from_table(text: str, path: Path) -> list[tuple[Any, Any]]:
    """Read the rows of a CSV table."""
    try:
        lines = io.StringIO(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE), newline="")
        rows = [row for row in csv.reader(lines, strict=True) if row]
    except csv.Error as error:
        raise CaptionsError(f"{path} is not a CSV table ({error})") from None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    caption = next((header.index(name) for name in CAPTION_COLUMNS if name in header), None)
    if caption is None:
        raise CaptionsError(
            f"{path} is a CSV table without a caption column: expected a header with one of "
            f"{', '.join(CAPTION_COLUMNS)}; found {', '.join(header) or 'nothing'}"
        )
    if ragged := [row for row in rows if len(row) != len(header)]:
        raise CaptionsError(
            f"{path}: a row has {len(ragged[0])} columns and the header {len(header)}, near "
            f"{', '.join(ragged[0])[:60]!r}; put captions with commas in double quotes"
        )
    captions = [row[caption] for row in rows[1:]]
    place = next((header.index(name) for name in ID_COLUMNS if name in header), None)
    if place is None:
        return numbered(captions)
    return [(Path(row[place].strip()).stem, caption) for row, caption in zip(rows[1:], captions)]


def from_json(content: Any, path: Path) -> list[tuple[Any, Any]]:
    if isinstance(content, list):
        return numbered(content)
    if not isinstance(content, dict):
        raise wrong_shape(path, type(content).__name__)
    if "annotations" not in content:
        return [
            (Path(name).stem, entry["caption"] if isinstance(entry, dict) and "caption" in entry else entry)
            for name, entry in content.items()
        ]
    try:
        first: dict[int, str] = {}
        for each in content["annotations"]:
            first.setdefault(int(each["image_id"]), each["caption"])
    except (TypeError, KeyError, ValueError):
        raise wrong_shape(path, "annotations without image_id and caption") from None
    return [(f"{image:012d}", first[image]) for image in sorted(first)]


def numbered(captions: list[Any]) -> list[tuple[Any, Any]]:
    return [(f"{number:06d}", caption) for number, caption in enumerate(captions)]


def checked(pairs: list[tuple[Any, Any]], path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for name, caption in pairs:
        if not isinstance(caption, str) or not caption.strip():
            raise wrong_shape(path, f"{name}: {str(caption)[:60]!r}")
        if not NAME.fullmatch(name) or name in captions:
            raise CaptionsError(f"{path} names an image {name!r}, which is not a file name, or is a duplicate")
        captions[name] = " ".join(caption.split())
    if not captions:
        raise CaptionsError(f"{path} has no captions")
    return captions


def wrong_shape(path: Path, found: str) -> CaptionsError:
    return CaptionsError(
        f"{path} is not a captions file: expected a CSV table, COCO's captions, {{name: {{'caption': text}}}}, a list "
        f"or lines of text; found {found}"
    )
