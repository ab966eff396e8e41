"""Layer lists by pattern: `all`, or ids with braces such as `vit-block{20..29}-cross-map` and `up-level{1,2}-...`.

A fraction names a block by its depth, in a model of any size: of 24 blocks, `vit-block{1/3,1/2}-self-map` are the self
maps of vit-block8 and vit-block12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from diffusion_feature.errors import layer_not_found

BRACES = re.compile(r"\{([^{}]*)\}")
FRACTION = re.compile(r"(\d+)/([1-9]\d*)")


def expand_layers(patterns: str | Iterable[str], known: Sequence[str], suffix: str, where: str = "model") -> list[str]:
    """The layer ids that the patterns name, in the patterns' order, each once.

    patterns   "all" (every known id that ends in `suffix`), one pattern, or several
    errors     LayerNotFound for an id that is not among `known`, with the nearest
    """
    wanted: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern == "all":
            ids = [layer for layer in known if layer.endswith(suffix)]
        else:
            ids = expand_braces(at_depths(pattern, known))
        wanted.update(dict.fromkeys(ids))
    present = set(known)
    if missing := [layer for layer in wanted if layer not in present]:
        raise layer_not_found(missing[0], [layer for layer in known if layer.endswith(suffix)], where)
    return list(wanted)


def expand_braces(pattern: str) -> list[str]:
    """`a{0..2}b` -> a0b a1b a2b;  `a{x,y}b` -> axb ayb;  without braces: itself."""
    found = BRACES.search(pattern)
    if not found:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + choice + rest for choice in choices(found.group(1)) for rest in expand_braces(tail)]


def at_depths(pattern: str, known: Iterable[str]) -> str:
    """The pattern with the numbers of blocks in place of fractions: n/d is block n * count // d of `count` blocks."""
    while found := next((each for each in BRACES.finditer(pattern) if "/" in each[1]), None):
        head, tail = pattern[: found.start()], pattern[found.end() :]
        numbers = {each[1] for layer in known if (each := re.match(re.escape(head) + r"(\d+)(?!\d)", layer))}

        def number(choice: str, count: int = len(numbers)) -> str:
            part = FRACTION.fullmatch(choice)
            return str(int(part[1]) * count // int(part[2])) if part else choice.replace("/", "|")

        pattern = f"{head}{{{','.join(map(number, choices(found[1])))}}}{tail}"
    return pattern


def choices(inside: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(span.group(1)), int(span.group(2))
        return [str(number) for number in range(first, last + 1)]
    return inside.split(",")
