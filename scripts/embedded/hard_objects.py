"""The objects of scenes-hard, drawn from one palette that all classes share: only the shape tells them apart.

An object is drawn in its own frame (x right, y down, about -1..1) in a main colour; trims are grey, white or a second
colour of the palette, so that no class has a colour of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from embedded.pen import Colour, Pen, Random, colour, shade

# colour name -> ranges of hue (degrees), saturation and value
PALETTE: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((350, 368), (0.75, 0.95), (0.7, 0.95)),
    "orange": ((20, 32), (0.8, 1.0), (0.85, 1.0)),
    "yellow": ((48, 57), (0.75, 1.0), (0.9, 1.0)),
    "green": ((120, 150), (0.6, 0.9), (0.5, 0.8)),
    "blue": ((215, 240), (0.65, 0.95), (0.6, 0.95)),
    "purple": ((270, 300), (0.5, 0.85), (0.5, 0.85)),
    "white": ((0, 360), (0.0, 0.06), (0.9, 1.0)),
    "black": ((0, 360), (0.0, 0.2), (0.08, 0.2)),
}
DARK, PALE, GLASS = (38, 38, 44), (240, 238, 232), (185, 205, 215)


def pick_colour(random: Random) -> tuple[str, Colour]:
    name = list(PALETTE)[random.randint(len(PALETTE))]
    return name, colour(random, *PALETTE[name])


def second_colour(random: Random) -> Colour:
    return pick_colour(random)[1]


def ball(pen: Pen, random: Random, base: Colour) -> None:
    pen.ellipse(0, 0, 0.95, 0.95, base)
    bulge, stripe = random.uniform(0.15, 0.35), second_colour(random)
    band = [(x / 10 * 0.88, -0.12 + bulge * (x / 10) ** 2) for x in range(-10, 11)]
    pen.polygon(band + [(x, y + 0.26) for x, y in reversed(band) if abs(x) < 0.8], stripe)
    pen.ellipse(-0.35, -0.5, 0.16, 0.12, PALE)


def star(pen: Pen, random: Random, base: Colour) -> None:
    inner = random.uniform(0.38, 0.48)
    for radius, fill in ((1.0, base), (0.5, shade(base, 0.8))):
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        radii = [radius * (inner if i % 2 else 1) for i in range(10)]
        pen.polygon([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)], fill)


def tree(pen: Pen, random: Random, base: Colour) -> None:
    width = random.uniform(0.12, 0.2)
    pen.box(-width, 0.1, width, 1, (96, 66, 40))
    if random.randint(2):
        for top, half in ((-0.2, 0.75), (-0.6, 0.6), (-1.0, 0.42)):
            pen.polygon([(0, top), (half, top + 0.65), (-half, top + 0.65)], shade(base, 1 - 0.12 * (top + 0.6)))
    else:
        for x, y, r in ((-0.4, -0.15, 0.42), (0.4, -0.15, 0.42), (0, -0.5, 0.5), (0, 0, 0.4)):
            pen.ellipse(x, y, r, r, shade(base, 1 - 0.15 * y))


def house(pen: Pen, random: Random, base: Colour) -> None:
    eaves, peak = random.uniform(-0.25, 0.0), random.uniform(-1.0, -0.8)
    pen.box(-0.8, eaves, 0.8, 0.95, base)
    pen.polygon([(-1, eaves), (0, peak), (1, eaves)], second_colour(random))
    pen.box(-0.16, 0.35, 0.18, 0.95, DARK)
    for x in (-0.5, 0.5):
        pen.box(x - 0.17, eaves + 0.2, x + 0.17, eaves + 0.52, GLASS)


def car(pen: Pen, random: Random, base: Colour) -> None:
    roof = random.uniform(-0.6, -0.45)
    pen.polygon([(-0.6, -0.05), (-0.4, roof), (0.3, roof), (0.6, -0.05)], shade(base, 0.85))
    pen.polygon([(-0.45, -0.05), (-0.32, roof + 0.1), (-0.06, roof + 0.1), (-0.06, -0.05)], GLASS)
    pen.polygon([(0.04, -0.05), (0.04, roof + 0.1), (0.24, roof + 0.1), (0.45, -0.05)], GLASS)
    pen.polygon([(-1, 0.02), (-0.9, -0.07), (0.75, -0.07), (1, 0.08), (1, 0.4), (-1, 0.4)], base)
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.4, 0.25, 0.25, DARK)
        pen.ellipse(x, 0.4, 0.11, 0.11, (175, 175, 180))


def fish(pen: Pen, random: Random, base: Colour) -> None:
    fin, height = shade(base, 0.75), random.uniform(0.42, 0.55)
    pen.polygon([(0.5, 0), (1, -0.5), (0.85, 0), (1, 0.5)], fin)
    pen.polygon([(-0.3, -height * 0.7), (0.1, -height - 0.25), (0.35, -height * 0.5)], fin)
    pen.ellipse(-0.15, 0, 0.8, height, base)
    pen.polygon([(-0.05, 0.05), (0.3, 0.3), (0.28, -0.05)], fin)
    pen.ellipse(-0.6, -0.1, 0.12, 0.12, PALE)
    pen.ellipse(-0.62, -0.1, 0.06, 0.06, DARK)


def flower(pen: Pen, random: Random, base: Colour) -> None:
    stem, petals, turn = (70, 130, 60), random.randint(5, 8), random.uniform(0, 1)
    pen.box(-0.08, -0.2, 0.08, 1, stem)
    pen.polygon([(0, 0.8), (0.5, 0.4), (0.42, 0.75)], stem)
    for i in range(petals):
        angle = 2 * math.pi * (i + turn) / petals
        pen.ellipse(0.4 * math.cos(angle), -0.4 + 0.4 * math.sin(angle), 0.26, 0.26, base)
    pen.ellipse(0, -0.4, 0.23, 0.23, second_colour(random))


def mushroom(pen: Pen, random: Random, base: Colour) -> None:
    flare = random.uniform(0.22, 0.32)
    pen.polygon([(-flare, -0.1), (flare, -0.1), (flare + 0.1, 0.95), (-flare - 0.1, 0.95)], PALE)
    dome = [(math.cos(math.pi * i / 20), -0.9 * math.sin(math.pi * i / 20)) for i in range(21)]
    pen.polygon([(x * 0.95, y + 0.05) for x, y in dome], base)
    spots = second_colour(random)
    for x, y, r in ((-0.5, -0.25, 0.13), (0.05, -0.55, 0.16), (0.5, -0.22, 0.12)):
        pen.ellipse(x, y, r, r, spots)


def traffic_light(pen: Pen, random: Random, base: Colour) -> None:
    half = random.uniform(0.3, 0.38)
    pen.box(-0.08, 0.3, 0.08, 1, (110, 110, 115))
    pen.box(-half, -1, half, 0.42, base)
    lit, lamps = random.randint(3), ((230, 50, 40), (245, 200, 50), (60, 200, 90))
    for i, lamp in enumerate(lamps):
        pen.ellipse(0, -0.74 + 0.45 * i, 0.19, 0.19, lamp if i == lit else shade(lamp, 0.35))


def street_lamp(pen: Pen, random: Random, base: Colour) -> None:
    reach = random.uniform(0.5, 0.65)
    pen.box(-0.42, -0.9, -0.24, 1, base)
    pen.box(-0.58, 0.86, -0.08, 1, base)
    pen.box(-0.42, -0.98, reach, -0.8, base)
    pen.polygon([(reach - 0.32, -0.62), (reach - 0.14, -0.82), (reach + 0.1, -0.82), (reach + 0.28, -0.62)], base)
    pen.ellipse(reach - 0.02, -0.55, 0.22, 0.16, (255, 240, 170))


def air_balloon(pen: Pen, random: Random, base: Colour) -> None:
    pen.ellipse(0, -0.32, 0.7, 0.68, base)
    pen.polygon([(-0.6, 0.02), (0.6, 0.02), (0.2, 0.55), (-0.2, 0.55)], base)
    stripe, width = second_colour(random), random.uniform(0.18, 0.28)
    pen.ellipse(0, -0.32, width, 0.66, stripe)
    pen.polygon([(-width * 0.9, 0.02), (width * 0.9, 0.02), (0.09, 0.54), (-0.09, 0.54)], stripe)
    pen.box(-0.2, 0.68, 0.2, 1, (140, 95, 55))
    for x in (-0.16, 0.13):
        pen.box(x, 0.54, x + 0.04, 0.7, DARK)


def boat(pen: Pen, random: Random, base: Colour) -> None:
    mast = random.uniform(-0.12, 0.08)
    pen.box(mast - 0.04, -1, mast + 0.04, 0.4, (110, 80, 50))
    pen.polygon([(mast + 0.08, -0.95), (mast + 0.8, 0.25), (mast + 0.08, 0.25)], PALE)
    pen.polygon([(mast - 0.08, -0.7), (mast - 0.08, 0.25), (mast - 0.62, 0.25)], second_colour(random))
    pen.polygon([(-1, 0.38), (1, 0.38), (0.65, 0.9), (-0.65, 0.9)], base)


def bird(pen: Pen, random: Random, base: Colour) -> None:
    lift = random.uniform(-0.95, -0.55)
    pen.polygon([(0.45, 0.1), (1, -0.15), (0.95, 0.3)], shade(base, 0.8))
    pen.ellipse(0, 0.15, 0.62, 0.36, base)
    pen.ellipse(-0.6, -0.12, 0.27, 0.25, base)
    pen.polygon([(-0.84, -0.2), (-1, -0.04), (-0.82, 0.04)], (245, 165, 40))
    pen.polygon([(-0.22, 0.1), (0.35, 0.1), (0.55, lift)], shade(base, 0.7))
    pen.ellipse(-0.66, -0.18, 0.07, 0.07, PALE)


def cup(pen: Pen, random: Random, base: Colour) -> None:
    inside = shade(base, 0.6)
    turns = [math.pi * (i / 12 - 0.5) for i in range(13)]
    outer = [(0.45 + 0.5 * math.cos(a), 0.1 + 0.42 * math.sin(a)) for a in turns]
    inner = [(0.45 + 0.3 * math.cos(a), 0.1 + 0.22 * math.sin(a)) for a in reversed(turns)]
    pen.polygon(outer + inner, base)
    foot = random.uniform(0.42, 0.52)
    pen.polygon([(-0.75, -0.6), (0.6, -0.6), (foot, 0.85), (-foot - 0.15, 0.85)], base)
    pen.ellipse(-0.075, -0.6, 0.675, 0.2, inside)


DRAW: dict[str, Callable[[Pen, Random, Colour], None]] = {
    "ball": ball,
    "star": star,
    "tree": tree,
    "house": house,
    "car": car,
    "fish": fish,
    "flower": flower,
    "mushroom": mushroom,
    "traffic light": traffic_light,
    "street lamp": street_lamp,
    "air balloon": air_balloon,
    "boat": boat,
    "bird": bird,
    "cup": cup,
}
