"""Read JSON with limits on its nesting and on the length of integers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from goca.errors import GocaError

DEPTH = 100  # lists and objects within each other
DIGITS = 100  # of a whole number
LONG = re.compile(rf"\d{{{DIGITS}}}")

Pairs = Callable[[list[tuple[str, Any]]], Any]


class JSONUnreadable(GocaError, ValueError):
    """Text that is not JSON, or exceeds a limit; the message says where or which."""


class NotText(JSONUnreadable):
    """Bytes that are not UTF-8."""


def read_json(path: str | os.PathLike[str], pairs: Pairs | None = None) -> Any:
    """A JSON file in UTF-8, with a byte-order mark or without. Raises JSONUnreadable, OSError."""
    return parse_json(Path(path).read_bytes(), pairs)


def parse_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """JSON as Python values. Raises JSONUnreadable.

    pairs  converts an object's pairs; by default to a dictionary
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        found = json.loads(text, object_pairs_hook=pairs, parse_int=whole_number if LONG.search(text) else None)
    except RecursionError:
        raise JSONUnreadable(f"lists or objects are nested deeper than {DEPTH}") from None
    except UnicodeDecodeError as error:
        raise NotText(f"no UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise JSONUnreadable(str(error)) from None
    if text.count("[") + text.count("{") > DEPTH and deeper_than(found, DEPTH):
        raise JSONUnreadable(f"lists or objects are nested deeper than {DEPTH}")
    return found


def whole_number(digits: str) -> int:
    if len(digits) > DIGITS:
        raise JSONUnreadable(f"a whole number has {len(digits.lstrip('-'))} digits; at most {DIGITS} are read")
    return int(digits)


def deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than a limit."""
    level = [value]
    for _ in range(depth):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [item for each in inner for item in each if isinstance(item, dict | list)]
        if not level:
            return False
    return True
