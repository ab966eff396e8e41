"""Colours for class names: the typical colour of a thing, or hues a golden angle apart. Needs only numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from goca.drawing.palettes import VOID, Array, bright_palette

BACKGROUND_GREY = (206, 206, 206)

# colour -> words whose colour is obvious; a name of several words takes that of its last known word
OBVIOUS: dict[tuple[int, int, int], str] = {
    (104, 182, 240): "sky",
    (36, 104, 200): "water sea ocean lake river pool wave",
    (110, 190, 70): "grass lawn meadow field",
    (28, 120, 52): "tree trees forest bush plant leaf leaves hedge vegetation palm",
    (226, 202, 130): "sand beach desert dune",
    (220, 236, 248): "snow ice",
    (120, 124, 134): "road street asphalt pavement",
    (178, 172, 166): "wall concrete stone rock sidewalk",
    (150, 100, 60): "wood soil earth ground dirt mud table floor",
    (196, 208, 222): "cloud clouds fog",
    (240, 110, 30): "fire flame orange pumpkin carrot",
    (252, 210, 40): "sun banana lemon sunflower",
    (214, 40, 50): "blood tomato strawberry cherry",
}
_COLOUR_OF = {word: colour for colour, words in OBVIOUS.items() for word in words.split()}
STEP = 0.78  # an obvious colour that is taken already is darkened by this factor until it is free
APART = 90.0  # distance in RGB from all colours in use, for a class without an obvious colour, as long as there is one


def class_colours(names: Mapping[int, str], background: int = 0) -> dict[int, tuple[int, int, int]]:
    """A colour for each class id, all different; the same names always get the same colours.

    names       class id -> name
    background  the class id that is drawn light grey
    returns     class id -> (red, green, blue), 0..255

    >>> class_colours({1: "blue sky", 2: "cat"})[1]
    (104, 182, 240)
    """
    colours = {background: BACKGROUND_GREY}
    for class_id, name in names.items():
        if class_id != background and (obvious := _obvious(name)) is not None:
            colours[class_id] = _free(obvious, colours)
    for class_id in names:
        if class_id not in colours:
            colours[class_id] = _apart(class_id, colours)
    return {class_id: colours[class_id] for class_id in names}


def _obvious(name: str) -> tuple[int, int, int] | None:
    known = [_COLOUR_OF[word] for word in name.lower().replace("-", " ").split() if word in _COLOUR_OF]
    return known[-1] if known else None


def _free(colour: tuple[int, int, int], used: Mapping[int, tuple[int, int, int]]) -> tuple[int, int, int]:
    while colour in used.values() and max(colour) > 8:
        colour = _as_tuple(np.multiply(colour, STEP))
    return colour


def _apart(class_id: int, used: Mapping[int, tuple[int, int, int]]) -> tuple[int, int, int]:
    """The first bright colour, starting at the class's number, that is different enough from all others."""
    bright = bright_palette()
    ids = 1 + (class_id - 1 + np.arange(VOID - 1)) % (VOID - 1)
    distances = np.linalg.norm(bright[ids, None].astype(float) - np.array(list(used.values())), axis=-1).min(1)
    enough = distances >= min(APART, distances.max())
    return _as_tuple(bright[ids[int(enough.argmax())]])


def as_palette(colours: Mapping[int, tuple[int, int, int]]) -> Array:
    """Class colours as a palette for `goca.drawing.palettes.colourise`   uint8 [256, 3]; void is white"""
    palette = bright_palette()
    for class_id, colour in colours.items():
        if 0 <= class_id < VOID:
            palette[class_id] = colour
    return palette


def class_palette(names: Mapping[int, str] | Sequence[str]) -> Array:
    """The palette in which these classes are drawn everywhere: id -> name, or names by id   uint8 [256, 3]"""
    return _class_palette(tuple(names.items() if isinstance(names, Mapping) else enumerate(names))).copy()


@lru_cache(maxsize=8)  # a report asks for the same one many times
def _class_palette(names: tuple[tuple[int, str], ...]) -> Array:
    return as_palette(class_colours(dict(names)))


def _as_tuple(colour: Array) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in colour)
    return red, green, blue
