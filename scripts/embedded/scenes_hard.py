"""scenes-hard: two to four objects of fourteen classes, overlapping, some of them small, all in the same colours.

The backgrounds, the canvas and the pen are those of `scene_drawing`; random numbers come from numpy's RandomState, so
that a seed gives the same image on every machine. Captions are of seven kinds (KINDS), as labellers write them: some
name a thing by a synonym, leave one out, or name one that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedded import hard_objects
from embedded.backgrounds import LOWER, UPPER
from embedded.hard_objects import pick_colour
from embedded.pen import SIZE, SUPERSAMPLE, Pen, Random
from embedded.scene_drawing import draw_backdrop, place

# class id k -> names; the first one is the class's own, the others are synonyms
CLASSES: tuple[tuple[str, ...], ...] = (
    (),
    ("ball", "sphere"),
    ("star",),
    ("tree", "oak"),
    ("house", "cottage"),
    ("car", "automobile"),
    ("fish", "trout"),
    ("flower", "blossom"),
    ("mushroom", "toadstool"),
    ("traffic light", "stoplight"),
    ("street lamp", "lamp post"),
    ("air balloon", "hot air balloon"),
    ("boat", "sailing boat"),
    ("bird", "sparrow"),
    ("cup", "mug"),
)
OBJECTS = tuple(names[0] for names in CLASSES[1:])
PARTS = {
    "tree": ("trunk",),
    "house": ("roof", "door"),
    "car": ("wheels",),
    "fish": ("fins",),
    "flower": ("petals", "stem"),
    "mushroom": ("cap",),
    "traffic light": ("pole",),
    "street lamp": ("pole",),
    "air balloon": ("basket",),
    "boat": ("sail",),
    "bird": ("wings",),
    "cup": ("handle",),
}
STANDING = {"tree", "house", "car", "flower", "mushroom", "traffic light", "street lamp", "boat", "cup"}

OBJECTS_PER_IMAGE = ((2, 0.35), (3, 0.4), (4, 0.25))
HALF_SIDES = (((6.0, 9.0), 0.3), ((9.0, 14.0), 0.4), ((14.0, 20.0), 0.3))  # small, medium, large: pixels, chance
VISIBLE, LEAST = 0.4, 14  # of every object stay visible: this share and this many pixels
TRIES = 25

KINDS: dict[str, float] = {  # kind of caption -> its share
    "plain": 0.3,
    "articles": 0.14,
    "adjectives": 0.14,
    "synonyms": 0.14,
    "parts": 0.14,
    "left out": 0.07,
    "not there": 0.07,
}


@dataclass
class HardScene:
    """An image [SIZE, SIZE, 3] uint8, its label map [SIZE, SIZE] uint8 (0, or k for OBJECTS[k - 1]) and its words."""

    image: np.ndarray
    label: np.ndarray
    objects: list[str]  # by class id
    colours: dict[str, str]  # object -> the name of its main colour
    backgrounds: list[str]  # upper, lower

    @property
    def words(self) -> dict:
        """What captions are written from; JSON can hold it."""
        return {"objects": self.objects, "colours": self.colours, "backgrounds": self.backgrounds}


def weighted(random: Random, chances) -> int:
    """An index, drawn with the given chances."""
    return min(int(np.searchsorted(np.cumsum(chances), random.uniform())), len(chances) - 1)


def draw_scene(seed: int, index: int) -> HardScene:
    """Image number `index` of the split that `seed` names. Same arguments, same pixels."""
    random = Random([seed, index, 77])
    canvas, backgrounds, horizon = draw_backdrop(random, (16, 48), 0.2)
    numbers, chances = zip(*OBJECTS_PER_IMAGE)
    names = [OBJECTS[i] for i in random.permutation(len(OBJECTS))[: numbers[weighted(random, chances)]]]
    spans, odds = zip(*HALF_SIDES)
    halves = sorted((random.uniform(*spans[weighted(random, odds)]) for _ in names), reverse=True)
    label, areas, colours = np.zeros((SIZE, SIZE), np.uint8), {}, {}
    for name, half in zip(names, halves):  # large ones first: small ones lie in front
        class_id, (colour_name, base) = OBJECTS.index(name) + 1, pick_colour(random)
        for _ in range(TRIES):
            centre = place(random, half, horizon + 3 if name in STANDING else None)
            tried = canvas.copy()
            tilt = random.uniform(-0.15, 0.15) if name in STANDING else random.uniform(-0.5, 0.5)
            pen = Pen(tried, centre, half, tilt, flip=bool(random.randint(2)))
            hard_objects.DRAW[name](pen, random, base)
            mask = np.asarray(pen.mask.reduce(SUPERSAMPLE)) >= 128
            left = {k: int(((label == k) & ~mask).sum()) for k in areas}
            if mask.sum() >= LEAST and all(left[k] >= max(VISIBLE * area, LEAST) for k, area in areas.items()):
                canvas, label[mask] = tried, class_id
                areas[class_id], colours[name] = int(mask.sum()), colour_name
                break
    objects = [OBJECTS[k - 1] for k in sorted(areas)]
    return HardScene(np.asarray(canvas.reduce(SUPERSAMPLE)), label, objects, colours, backgrounds)


# --- captions --------------------------------------------------------------------------------------------------------


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def phrase(random: Random, kind: str, name: str, colour: str) -> str:
    """One object as a caption of that kind names it."""
    if kind == "articles":
        return with_article(name)
    if kind == "adjectives" and random.uniform() < 0.6:
        return f"{colour} {name}"
    names = CLASSES[OBJECTS.index(name) + 1]
    if kind == "synonyms" and random.uniform() < 0.6:
        return names[-1]
    if kind == "parts" and name in PARTS and random.uniform() < 0.6:
        return f"({', '.join((name, *PARTS[name]))})"
    return name


def caption_of(words: Mapping[str, Any], random: Random, kind: str) -> str:
    """A caption of one of KINDS for a scene's `words`: the phrases in any order, commas between them."""
    named = list(words["objects"])
    if kind == "left out" and len(named) > 1:
        named.pop(random.randint(len(named)))
    phrases = [phrase(random, kind, name, words["colours"][name]) for name in named]
    phrases += [f"the {name}" if kind == "articles" else name for name in words["backgrounds"]]
    if kind == "not there":
        absent = [name for name in OBJECTS if name not in words["objects"]]
        phrases.append(absent[random.randint(len(absent))])
    return ", ".join(phrases[i] for i in random.permutation(len(phrases)))


def caption_kind(seed: int, index: int) -> str:
    return list(KINDS)[weighted(Random([seed, index, 78]), list(KINDS.values()))]


def write_caption(scene: HardScene, seed: int, index: int) -> str:
    """The caption of image number `index` of a split, in the labels format."""
    return caption_of(scene.words, Random([seed, index, 79]), caption_kind(seed, index))


def words_of_scenes_hard() -> list[str]:
    """Every word that a caption may hold, each once, in a fixed order."""
    texts = [*(name for names in CLASSES for name in names), *UPPER, *LOWER, *hard_objects.PALETTE]
    texts += [part for parts in PARTS.values() for part in parts] + ["a", "an", "the"]
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def size_of(scene: HardScene, class_id: int) -> str:
    """ "small", "medium" or "large": by the share of the image that is visible of it."""
    share = float((scene.label == class_id).mean())
    return "small" if share < 0.02 else "medium" if share < 0.06 else "large"
