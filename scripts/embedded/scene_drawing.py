"""Procedural scenes: one to three large objects over an upper and a lower background, with exact masks and captions.

Images are drawn at four times their size and averaged down. Random numbers come from numpy's RandomState, whose
stream is frozen, so that a seed gives the same image on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from embedded.backgrounds import LOWER, UPPER
from embedded.pen import SIZE, SUPERSAMPLE, Pen, Random, colour, shade

OBJECTS = ("ball", "star", "tree", "house", "car", "fish", "flower", "mushroom")  # class ids 1..8
PARTS = {
    "tree": ("trunk",),
    "house": ("roof", "door"),
    "car": ("wheels",),
    "fish": ("fins",),
    "flower": ("petals", "stem"),
    "mushroom": ("cap",),
}
OBJECTS_PER_IMAGE = ((1, 0.5), (2, 0.42), (3, 0.08))
HALF_SIDE = {1: (20.0, 29.0), 2: (15.0, 19.5), 3: (11.5, 14.0)}  # of an object, pixels, by objects per image
STANDING = {"tree", "house", "car", "flower", "mushroom"}  # these have their foot below the horizon


@dataclass
class Scene:
    """An image [SIZE, SIZE, 3] uint8, its label map [SIZE, SIZE] uint8 (0, or k for OBJECTS[k - 1]) and its words."""

    image: np.ndarray
    label: np.ndarray
    objects: list[str]  # those with at least one visible pixel, in drawing order
    backgrounds: list[str] = field(default_factory=list)  # upper, lower


# --- objects -----------------------------------------------------------------------------------------------------


def draw_ball(pen: Pen, random: Random) -> None:
    base = colour(random, [(345, 375), (200, 250), (270, 310)][random.randint(3)])
    pen.ellipse(0, 0, 0.9, 0.9, base)
    bulge = random.uniform(0.2, 0.35)
    stripe = [(x / 10 * 0.88, -0.12 + bulge * (x / 10) ** 2) for x in range(-10, 11)]
    pen.polygon(stripe + [(x, y + 0.28) for x, y in reversed(stripe) if abs(x) < 0.8], (245, 240, 235))
    pen.ellipse(-0.35, -0.45, 0.18, 0.14, shade(base, 1.5))


def draw_star(pen: Pen, random: Random) -> None:
    base, inner = colour(random, (42, 56), (0.75, 1), (0.9, 1)), random.uniform(0.38, 0.5)
    for radius, fill in ((1.0, base), (0.55, shade(base, 1.25))):
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        radii = [radius * (inner if i % 2 else 1) for i in range(10)]
        pen.polygon([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)], fill)


def draw_tree(pen: Pen, random: Random) -> None:
    trunk, crown = colour(random, (20, 35), (0.5, 0.7), (0.3, 0.5)), colour(random, (85, 135), (0.6, 0.9), (0.45, 0.75))
    width = random.uniform(0.12, 0.2)
    pen.box(-width, 0.1, width, 1, trunk)
    if random.randint(2):  # a conifer of three tiers
        for top, half in ((-0.2, 0.75), (-0.6, 0.6), (-1.0, 0.42)):
            pen.polygon([(0, top), (half, top + 0.65), (-half, top + 0.65)], shade(crown, 1 - 0.1 * (top + 0.6)))
    else:  # a round crown
        for x, y, r in ((-0.4, -0.15, 0.42), (0.4, -0.15, 0.42), (0, -0.5, 0.5), (0, 0, 0.4)):
            pen.ellipse(x, y, r, r, shade(crown, 1 - 0.15 * y))


def draw_house(pen: Pen, random: Random) -> None:
    front = colour(random, (20, 60), (0.1, 0.4), (0.8, 0.98))
    roof = colour(random, [(350, 375), (210, 235)][random.randint(2)], (0.5, 0.8), (0.4, 0.7))
    eaves, peak = random.uniform(-0.25, 0.0), random.uniform(-1.0, -0.8)
    pen.box(-0.8, eaves, 0.8, 0.95, front)
    pen.polygon([(-1, eaves), (0, peak), (1, eaves)], roof)
    pen.box(-0.15, 0.35, 0.2, 0.95, colour(random, (15, 40), (0.5, 0.8), (0.3, 0.5)))
    for x in (-0.5, 0.5):
        pen.box(x - 0.17, eaves + 0.2, x + 0.17, eaves + 0.52, (120, 175, 215))


def draw_car(pen: Pen, random: Random) -> None:
    body = colour(random, [(350, 370), (195, 235), (45, 58), (130, 160)][random.randint(4)], (0.7, 1), (0.6, 0.95))
    roof = random.uniform(-0.6, -0.45)
    pen.polygon([(-0.6, -0.05), (-0.4, roof), (0.3, roof), (0.6, -0.05)], shade(body, 0.85))
    pen.polygon([(-0.45, -0.05), (-0.32, roof + 0.1), (-0.06, roof + 0.1), (-0.06, -0.05)], (190, 220, 235))
    pen.polygon([(0.04, -0.05), (0.04, roof + 0.1), (0.24, roof + 0.1), (0.45, -0.05)], (190, 220, 235))
    pen.polygon([(-1, 0.02), (-0.9, -0.07), (0.75, -0.07), (1, 0.08), (1, 0.4), (-1, 0.4)], body)
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.4, 0.25, 0.25, (30, 30, 34))
        pen.ellipse(x, 0.4, 0.11, 0.11, (175, 175, 180))


def draw_fish(pen: Pen, random: Random) -> None:
    body = colour(random, [(12, 32), (280, 315), (175, 195)][random.randint(3)], (0.65, 0.95), (0.75, 1))
    fin, height = shade(body, 0.7), random.uniform(0.4, 0.55)
    pen.polygon([(0.5, 0), (1, -0.45), (0.88, 0), (1, 0.45)], fin)
    pen.polygon([(-0.3, -height * 0.7), (0.1, -height - 0.25), (0.35, -height * 0.5)], fin)
    pen.ellipse(-0.15, 0, 0.8, height, body)
    pen.polygon([(-0.05, 0.05), (0.3, 0.3), (0.28, -0.05)], fin)
    pen.ellipse(-0.6, -0.1, 0.12, 0.12, (250, 250, 250))
    pen.ellipse(-0.62, -0.1, 0.06, 0.06, (15, 15, 20))


def draw_flower(pen: Pen, random: Random) -> None:
    petal = colour(random, [(320, 345), (265, 290), (355, 368)][random.randint(3)], (0.35, 0.85), (0.85, 1))
    stem, petals, turn = colour(random, (95, 125), (0.6, 0.8), (0.4, 0.6)), random.randint(5, 8), random.uniform(0, 1)
    pen.box(-0.08, -0.2, 0.08, 1, stem)
    pen.polygon([(0, 0.8), (0.5, 0.4), (0.42, 0.75)], stem)
    for i in range(petals):
        angle = 2 * math.pi * (i + turn) / petals
        pen.ellipse(0.38 * math.cos(angle), -0.38 + 0.38 * math.sin(angle), 0.26, 0.26, petal)
    pen.ellipse(0, -0.38, 0.24, 0.24, colour(random, (42, 52), (0.8, 1), (0.85, 1)))


def draw_mushroom(pen: Pen, random: Random) -> None:
    cap = colour(random, [(355, 372), (18, 30)][random.randint(2)], (0.7, 0.95), (0.55, 0.9))
    stem, flare = colour(random, (35, 50), (0.08, 0.25), (0.85, 0.98)), random.uniform(0.22, 0.32)
    pen.polygon([(-flare, -0.1), (flare, -0.1), (flare + 0.1, 0.95), (-flare - 0.1, 0.95)], stem)
    dome = [(math.cos(math.pi * i / 20), -0.9 * math.sin(math.pi * i / 20)) for i in range(21)]
    pen.polygon([(x * 0.95, y + 0.05) for x, y in dome], cap)
    for x, y, r in ((-0.5, -0.25, 0.13), (0.05, -0.55, 0.16), (0.5, -0.22, 0.12)):
        pen.ellipse(x, y, r, r, (245, 240, 230))


DRAW: dict[str, Callable[[Pen, Random], None]] = {
    "ball": draw_ball,
    "star": draw_star,
    "tree": draw_tree,
    "house": draw_house,
    "car": draw_car,
    "fish": draw_fish,
    "flower": draw_flower,
    "mushroom": draw_mushroom,
}


# --- images ----------------------------------------------------------------------------------------------------------


def choose(random: Random, options) -> str:
    return list(options)[random.randint(len(options))]


def place(random: Random, half_side: float, foot: float | None = None) -> tuple[float, float]:
    """Where an object's centre goes: whole in the image; `foot`: it stands, with its foot below this row."""
    low, high = half_side - 2, SIZE - half_side + 2
    y = random.uniform(low, high)
    if foot is not None:
        y = np.clip(random.uniform(foot, SIZE + 2) - half_side, low, high)
    return random.uniform(low, high), y


def draw_backdrop(random: Random, horizons: tuple[float, float], slope: float) -> tuple[Image.Image, list[str], float]:
    """Two backgrounds that meet at a horizon: the canvas at SUPERSAMPLE times its size, their names, the horizon's row.

    slope  the horizon's slope is drawn from -slope..slope
    """
    upper, lower = choose(random, UPPER), choose(random, LOWER)
    horizon, tilt = random.uniform(*horizons), random.uniform(-slope, slope)
    y, x = np.mgrid[:SIZE, :SIZE]
    above = (y < horizon + tilt * (x - SIZE / 2))[..., None]
    backdrop = np.where(above, UPPER[upper](random), LOWER[lower](random)).clip(0, 255).round().astype(np.uint8)
    canvas = Image.fromarray(backdrop).resize((SIZE * SUPERSAMPLE,) * 2, Image.Resampling.NEAREST)
    return canvas, [upper, lower], horizon


def draw_scene(seed: int, index: int) -> Scene:
    """Image number `index` of the split that `seed` names. Same arguments, same pixels."""
    random = Random([seed, index])
    canvas, backgrounds, horizon = draw_backdrop(random, (20, 44), 0.12)
    numbers, chances = zip(*OBJECTS_PER_IMAGE)
    wanted = numbers[int(np.searchsorted(np.cumsum(chances), random.uniform()))]
    label, placed = np.zeros((SIZE, SIZE), np.uint8), []
    for name in [OBJECTS[i] for i in random.permutation(len(OBJECTS))[:wanted]]:
        half_side = random.uniform(*HALF_SIDE[wanted])
        for _ in range(60):  # tries to stand clear of the others; the last is taken only if it does
            centre = place(random, half_side, horizon + 4 if name in STANDING else None)
            clear = all(math.dist(centre, other) > 0.7 * (half_side + size) for other, size in placed)
            if clear:
                break
        if clear:
            tilt = random.uniform(-0.12, 0.12) if name in STANDING else random.uniform(-0.5, 0.5)
            pen = Pen(canvas, centre, half_side, tilt, flip=bool(random.randint(2)))
            DRAW[name](pen, random)
            label[np.asarray(pen.mask.reduce(SUPERSAMPLE)) >= 128] = OBJECTS.index(name) + 1
            placed.append((centre, half_side))
    image = np.asarray(canvas.reduce(SUPERSAMPLE))
    present = [name for name in OBJECTS if (label == OBJECTS.index(name) + 1).any()]
    return Scene(image, label, present, backgrounds)


def write_caption(scene: Scene, seed: int, index: int, brackets: float = 0.2) -> str:
    """A scene's nouns, shuffled, as a labeller writes them: 'sky, (house, roof)'; parts at a chance `brackets`."""
    random = Random([seed, index, 1])
    words = list(scene.objects)
    if len(words) < 3:
        words = [f"({', '.join((w, *PARTS[w]))})" if w in PARTS and random.uniform() < brackets else w for w in words]
    words = [*words, *scene.backgrounds]
    return ", ".join(words[i] for i in random.permutation(len(words)))
