"""Check values from files and command lines against the annotated fields of a dataclass.

    @dataclass
    class Settings:
        limit: Annotated[int, Range(1)] | None = None

    check(Settings, {"limit": 0}, ConfigError)     # limit is 0; it must be a whole number of at least 1, or null

A field's type says what is taken: bool, int, float, str, Path, None, unions, tuples, sequences, mappings. `Annotated`
adds a rule: Range, OneOf, Filled, Pair, Different. Loads without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from goca.errors import GocaError

LARGEST = 2**63  # whole numbers lie below it, so that they can be written, hashed and handed on
SHOWN = 60  # characters of a value that an error repeats


class ConfigError(GocaError, ValueError):
    """An unknown config, field, rule or value; the message lists the known ones."""


# ---- rules


@dataclass(frozen=True)
class Range:
    """A number in a range, including both ends."""

    least: float = -math.inf
    most: float = math.inf

    def accepts(self, value: Any) -> bool:
        return self.least <= value <= self.most

    def expected(self, kind: str) -> str:
        limits = {"at least": self.least, "at most": self.most}
        said = (f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
        return f"{kind} of {' and '.join(said)}"


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of several names; a function, if the names are only known later."""

    names: Iterable[str] | Callable[[], Iterable[str]]

    @property
    def known(self) -> list[str]:
        return list(self.names() if callable(self.names) else self.names)

    def accepts(self, value: Any) -> bool:
        return value in self.known

    def expected(self, kind: str) -> str:
        return f"one of: {', '.join(self.known)}"


@dataclass(frozen=True)
class Filled:
    """A text or a list that is not empty."""

    def accepts(self, value: Any) -> bool:
        return bool(value.strip() if isinstance(value, str) else len(value))

    def expected(self, kind: str) -> str:
        return f"{kind} that is not empty"


@dataclass(frozen=True)
class Different:
    """A list without duplicates."""

    def accepts(self, value: Any) -> bool:
        return len(set(value)) == len(value)

    def expected(self, kind: str) -> str:
        return f"{kind}, all different"


@dataclass(frozen=True)
class Pair:
    """A whole number in a range, or a pair of them."""

    least: int
    most: int

    def accepts(self, value: Any) -> bool:
        return all(self.least <= each <= self.most for each in ([value] if isinstance(value, int) else value))

    def expected(self, kind: str) -> str:
        return f"a whole number of at least {self.least}, or two of them (height, width), and at most {self.most}"


Text = Annotated[str, Filled()]
Place = Text | Path
Count = Annotated[int, Range(1)]
Threshold = Annotated[float, Range(-1000, 1000)]  # scores lie in 0..1


# ---- what is checked


def check(cls: type, values: Any, error: type[ValueError], name: str = "", beside: Sequence[str] = ()) -> None:
    """Raise `error` unless the values are fields of the dataclass, each of its type.

    name    how the whole is called: the keys are named name.field; "" for the keys of a run
    beside  further keys, which somebody else checks
    A field that is missing is no matter of this function.
    """
    check_names(cls, values, error, name, beside)
    for key, hint in hints(cls).items():
        if key in values and (found := refusal(hint, values[key], f"{name}.{key}" if name else key)):
            raise error(found)


def check_names(cls: type, values: Any, error: type[ValueError], name: str = "", beside: Sequence[str] = ()) -> None:
    """Check only the names."""
    known = [*(field.name for field in dataclasses.fields(cls)), *beside]
    if not isinstance(values, Mapping):
        raise error(f"{name or 'the configuration'} is {shown(values)}; expected a mapping of {', '.join(known)}")
    if unknown := [key for key in values if key not in known]:
        word, near = named(unknown[0]), nearest(unknown[0], known)
        raise error(f"{name or 'a run'} has no field {word}; fields: {', '.join(known)}; nearest: {near}")


def check_fields(settings: Any, error: type[ValueError], name: str = "") -> None:
    """Check the values of a dataclass instance."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    check(type(settings), values, error, name)


def refusal(hint: Any, value: Any, key: str) -> str | None:
    """The reason why a value is not of a type, as a sentence; None if it is."""
    if fits(hint, value):
        return None
    options = flat(hint)
    chosen = next((rule for rule, base in map(ruled, options) if isinstance(rule, OneOf)), None)
    if chosen is not None and isinstance(value, str):
        return f"unknown {key} {shown(value)}; expected one of: {', '.join(chosen.known)}"
    listed = next((item for item in map(item_hint, options) if item is not None), None)
    if listed is not None and is_list(value):
        wrong = next((item for item in value if not fits(listed, item)), None)
        if wrong is not None or None in value:
            return f"{key} holds {shown(wrong)}; each must be {expected(listed)}"
    number = is_number(value) and str in map(bare, options) and chosen is None
    quoted = f" (a text that is a number stands in quotes: \"{key}='{value}'\")" if number else ""
    return f"{key} is {shown(value)}; it must be {expected(hint)}{quoted}"


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type and follows its rules."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(parts[0], value) and all(rule.accepts(value) for rule in parts[1:])
    if origin in (Union, types.UnionType):
        return any(fits(each, value) for each in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return is_list(value) and len(value) == len(parts) and all(map(fits, parts, value))
    if origin in (tuple, list, Sequence):
        return is_list(value) and all(fits(parts[0], each) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            fits(parts[0], key) and fits(parts[1], each) for key, each in value.items()
        )
    return PLAIN[hint](value) if hint in PLAIN else True


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value < LARGEST


def is_text(value: Any) -> bool:
    """Whether a text can be written: no NUL, no half of a surrogate pair."""
    return isinstance(value, str) and "\0" not in value and value == value.encode("utf-8", "replace").decode("utf-8")


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


PLAIN: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: is_whole,
    float: is_number,
    str: is_text,
    Path: lambda value: isinstance(value, os.PathLike),
    type(None): lambda value: value is None,
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    Path: "",
    type(None): "null",
}


def expected(hint: Any) -> str:
    """A description of the values of a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words = expected(parts[0])
        for rule in parts[1:]:
            words = rule.expected(words)
        return words
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(word for each in flat(hint) if (word := expected(each))))
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"{len(parts)} of them"
    if origin in (tuple, list, Sequence):
        return f"a list of {several(parts[0])}"
    if origin is Mapping:
        return f"a mapping, name: {expected(parts[1])}"
    return WORDS.get(hint, "a value")


def several(hint: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "finite numbers"}.get(bare(hint), "values")


def defaults(cls: type) -> dict[str, Any]:
    """The default values of a dataclass's fields."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


# ---- types, taken apart


@cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their rules."""
    return get_type_hints(cls, include_extras=True)


def flat(hint: Any) -> list[Any]:
    """The options of a union, including nested ones."""
    if get_origin(hint) in (Union, types.UnionType):
        return [option for each in get_args(hint) for option in flat(each)]
    return [hint]


def ruled(hint: Any) -> tuple[Any, Any]:
    return (get_args(hint)[1], get_args(hint)[0]) if get_origin(hint) is Annotated else (None, hint)


def bare(hint: Any) -> Any:
    return bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def item_hint(hint: Any) -> Any:
    """The type of a list's items; None for other types."""
    hint = bare(hint)
    parts = get_args(hint)
    variable = get_origin(hint) in (list, Sequence) or (get_origin(hint) is tuple and parts[-1] is Ellipsis)
    return parts[0] if variable else None


def nearest(key: Any, known: Iterable[str]) -> str:
    """The known name that is most similar to a key."""
    return next(iter(difflib.get_close_matches(named(key), list(known), n=1, cutoff=0.0)), "none")


def named(key: Any) -> str:
    """A key in the form used in errors."""
    return key[:SHOWN].encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(key, str) else shown(key)


def shown(value: Any) -> str:
    """The beginning of any value, in the form used in errors."""
    try:
        text = repr(value).encode("utf-8", "backslashreplace").decode("utf-8")
    except (ValueError, RecursionError):  # a number of more digits than Python prints; nested deeper than it goes
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
