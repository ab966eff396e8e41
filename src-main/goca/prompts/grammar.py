"""Split a caption into entities: the meaning of its brackets, and the class of each entity.

A caption is a list of nouns, commas between them, the parts of one object in brackets: "(person, clothes), sky".
GRAMMARS holds both readings, by the value of the protocol's switch `caption_grammar`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from goca.errors import GocaError

STOP_WORDS = ("a", "an", "the", "and")
BACKGROUND = "background"


class CaptionError(GocaError, ValueError):
    """No prompt can be made from a caption, a class table or a list of present classes."""


@dataclass(frozen=True)
class Entity:
    """One item of the caption: its words, and the class that it names, or None for background."""

    text: str
    class_id: int | None = None


@dataclass(frozen=True)
class Request:
    """Inputs for one image's prompt: the caption, and the present classes.

    class_names     class id -> the names that stand for it; the first one is added if the class is missing
    present         ids of the present classes, each once
    add_background  whether the word "background" is appended
    add_missing     whether present classes that no entity names are appended
    """

    caption: str
    class_names: Sequence[Sequence[str]]
    present: Sequence[int]
    add_background: bool
    add_missing: bool

    def class_of(self, item: str) -> int | None:
        """Return the lowest present class that has `item` among its names."""
        return next((class_id for class_id in sorted(self.present) if item in self.class_names[class_id]), None)

    def missing(self, class_ids: Iterable[int]) -> list[Entity]:
        """Return an entity with the first name of each class. Raises CaptionError for a class without names."""
        found = []
        for class_id in class_ids:
            if not self.class_names[class_id]:
                raise CaptionError(f"class {class_id} is present but not in the caption, and it has no name to add")
            found.append(Entity(self.class_names[class_id][0], class_id))
        return found


# --- brackets as written (paper) ---------------------------------------------------------------------------------

_OPEN, _CLOSE, _BREAK = "([{（［", ")]}）］", ",;\n，、；"


def parse_brackets(caption: str) -> list[tuple[str, ...]]:
    """Return the caption's groups, each a tuple of items; an item outside brackets is a group of one.

    Nested brackets belong to the outer group, and so do words just before a bracket: "car (wheel, door)" is one group.
    An unmatched bracket is read as a space, so that no word is lost. Duplicate groups are returned once.
    """
    return list(dict.fromkeys(read_groups(caption)))


def read_groups(caption: str) -> list[tuple[str, ...]]:
    """The same, with duplicates."""
    partners = balanced(caption)
    groups: list[list[str]] = [[]]
    item = ""
    depth = 0

    def end_item() -> None:
        nonlocal item
        if cleaned := _clean(item):
            groups[-1].append(cleaned)
        item = ""

    for position, character in enumerate(caption):
        if character in _BREAK or position in partners:
            end_item()
        elif character in _OPEN + _CLOSE:
            item += " "
        else:
            item += character
        if position in partners:
            depth += 1 if character in _OPEN else -1
        if depth == 0 and (character in _BREAK or position in partners):
            groups.append([])
    end_item()
    return [tuple(group) for group in groups if group]


def balanced(text: str) -> set[int]:
    """Return the positions of matched brackets."""
    waiting: list[int] = []
    found: set[int] = set()
    for position, character in enumerate(text):
        if character in _OPEN:
            waiting.append(position)
        elif character in _CLOSE and waiting:
            found |= {waiting.pop(), position}
    return found


def is_mark(character: str) -> bool:
    """Whether a character is punctuation, space or control, and so not part of a word."""
    return unicodedata.category(character)[0] in "PZC" or character in "$+<=>^`|~"


def names_nothing(text: str) -> bool:
    """Whether a text has no words but articles and "and", whose tokens are ignored."""
    return all(_clean(word) in ("", *STOP_WORDS) for word in text.lower().split())


def is_background(name: str) -> bool:
    """Whether a name stands for the background itself, which every segmentation has without being asked for it."""
    return _bare(_clean(name.lower())) == BACKGROUND


def names_no_class(groups: Iterable[Sequence[str]]) -> bool:
    """Whether no group of names, the first of which is the class's, names anything but the background."""
    return all(names_nothing(group[0]) or is_background(group[0]) for group in groups)


def _clean(item: str) -> str:
    """Normalise a text to one blank between words and no punctuation at the ends."""
    start, end = 0, len(item)
    while start < end and is_mark(item[start]):
        start += 1
    while end > start and is_mark(item[end - 1]):
        end -= 1
    return " ".join(item[start:end].split())


def read_brackets(request: Request) -> list[Entity]:
    """Make entities with the brackets read as written; every class that an item names is found.

    A group that names two or more classes is replaced by the items that name them; otherwise it is one entity.
    Items match with or without a leading article. Missing classes follow in ascending order.
    """
    entities: list[Entity] = []
    for items in parse_brackets(request.caption.lower()):
        named = [Entity(item, request.class_of(item) or request.class_of(_bare(item))) for item in items]
        named = [entity for entity in named if entity.class_id]
        if len({entity.class_id for entity in named}) > 1:
            entities += named
        else:
            entities.append(Entity(", ".join(items), named[0].class_id if named else None))
    if request.add_background:
        entities.append(Entity(BACKGROUND, request.class_of(BACKGROUND)))
    if request.add_missing:
        entities += request.missing(sorted(set(request.present) - {entity.class_id for entity in entities}))
    return list(dict.fromkeys(entities))


def _bare(item: str) -> str:
    words = item.split(" ")
    while len(words) > 1 and words[0] in STOP_WORDS:
        words = words[1:]
    return " ".join(words)


# --- the released reading ----------------------------------------------------------------------------------------


def split_first_group(caption: str) -> list[str]:
    """Split a caption as the released evaluation does; groups keep their brackets.

    A group is found whole only at the start or right after another one. Elsewhere it is assembled from pieces: a piece
    with "(" opens it, one with ")" closes it. In "sky, (truck), road" it is never closed, and the rest is lost.
    """
    things: list[str] = []
    open_group = ""
    for piece in re.findall(r"\([^)]*\)|[^,]+", caption):
        if piece.startswith("(") and piece.endswith(")"):
            things.append(piece)
            continue
        piece = piece.strip()
        if "(" in piece:
            open_group = piece
        elif ")" in piece:
            things.append(f"{open_group}, {piece}")
            open_group = ""
        elif open_group:
            open_group += f", {piece}"
        else:
            things.append(piece)
    return list(dict.fromkeys(things))


def read_first_group(request: Request) -> list[Entity]:
    """Make entities in the way and in the order of the released evaluation.

    Only a piece with an opening bracket has several items; ", sport equipment)", the rest of nested brackets, is one
    item. A group with two or more items that name a class, even the same one, is replaced by those items; duplicates
    are removed while groups still have their brackets. Missing classes are added in the iteration order of a set of
    ints; if two classes share a name, the word is added twice and stands for the lower id both times.
    """
    caption = request.caption.removesuffix(".") + (f", {BACKGROUND}" if request.add_background else "")
    found: dict[str, int | None] = {}
    named_classes: set[int] = set()
    for thing in split_first_group(caption.lower()):
        words = _without_brackets(thing)
        items = words.split(", ") if "(" in thing else [words]
        named = [(item, class_id) for item in items if (class_id := request.class_of(item)) is not None]
        named_classes |= {class_id for _, class_id in named}
        for text, class_id in named if len(named) > 1 else [(thing, named[0][1] if named else None)]:
            found.setdefault(text, class_id)
    entities = [Entity(_without_brackets(text), class_id) for text, class_id in found.items()]
    if request.add_missing:
        missing = request.missing(set(request.present) - named_classes)
        entities += [Entity(entity.text, request.class_of(entity.text)) for entity in missing]
    return entities


def _without_brackets(text: str) -> str:
    return text.replace("(", "").replace(")", "")


GRAMMARS: dict[str, Callable[[Request], list[Entity]]] = {"brackets": read_brackets, "first_group": read_first_group}
