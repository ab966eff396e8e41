"""Captions to generate from: COCO's captions file, a labels file, or plain text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

NAME = re.compile(r"[\w-][\w.-]*")  # an image's name within its folder


class CaptionsError(ValueError):
    """A captions file of another shape, or one that names an image twice."""


def read_captions(path: str | Path, n: int | None = None) -> dict[str, str]:
    """Image name -> caption, in the file's order; the first `n` (None: all).

    COCO's {"annotations": [{"image_id", "caption"}, ...]}: the first caption of each image, by image id
    a labels file {image file name: {"caption": text}} or {name: text}
    a JSON list of captions, or a text file with one per line: named 000000, 000001, ...
    errors     CaptionsError
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionsError(f"captions={path} cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            pairs = from_json(json.loads(text), path)
        except json.JSONDecodeError as error:
            raise CaptionsError(f"{path} is no JSON ({error})") from None
    else:
        pairs = numbered([line.strip() for line in text.splitlines() if line.strip()])
    captions = checked(pairs, path)
    if n is not None and not 0 < n <= len(captions):
        raise CaptionsError(f"n={n}, but {path} has captions for {len(captions)} images")
    return dict(list(captions.items())[:n])


def from_json(content: Any, path: Path) -> list[tuple[Any, Any]]:
    if isinstance(content, list):
        return numbered(content)
    if not isinstance(content, dict):
        raise wrong_shape(path, type(content).__name__)
    if "annotations" not in content:
        return [(Path(name).stem, entry["caption"] if isinstance(entry, dict) and "caption" in entry else entry)
                for name, entry in content.items()]  # fmt: skip
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
            raise CaptionsError(f"{path} names an image {name!r}, which is no file name or stands there twice")
        captions[name] = " ".join(caption.split())
    if not captions:
        raise CaptionsError(f"{path} has no captions")
    return captions


def wrong_shape(path: Path, found: str) -> CaptionsError:
    return CaptionsError(
        f"{path} is no captions file: expected COCO's captions, {{name: {{'caption': text}}}}, a list or lines of "
        f"text; found {found}"
    )
