"""classes.json of a labelled set: {id: name}. An id stays with its name when the set grows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from goca.files.atomic import write_text
from goca.files.bounded_json import JSONUnreadable, read_json
from goca.labelsets.errors import LabelSetError

MOST = 254  # 0 is background, 255 void


def class_table(folder: Path, names: Iterable[str]) -> dict[int, str]:
    """Ids 1, 2, ... for the names: those that classes.json has, then new ones in alphabetical order. Writes nothing."""
    table = read_table(folder / "classes.json")
    known = set(table.values())
    for name in sorted(set(names) - known):
        table[max(table, default=0) + 1] = name
    return checked(table)


def checked(table: dict[int, str]) -> dict[int, str]:
    if not table:
        raise LabelSetError("no class is named; expected at least one tag or class name")
    if max(table) > MOST:
        raise LabelSetError(f"class id {max(table)} does not fit a label map; expected at most {MOST} classes")
    return table


def read_table(path: Path) -> dict[int, str]:
    """{} where there is no file. Raises LabelSetError."""
    try:
        content = read_json(path)
        return {int(class_id): str(name) for class_id, name in content.items()}
    except FileNotFoundError:
        return {}
    except (JSONUnreadable, ValueError, AttributeError) as error:
        raise LabelSetError(f'{path} is not a class table ({error}); expected {{"1": "cat", ...}}') from None


def write_table(folder: Path, table: dict[int, str]) -> None:
    content = {str(class_id): table[class_id] for class_id in sorted(table)}
    write_text(folder / "classes.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
