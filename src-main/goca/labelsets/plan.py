"""Captions of generated images: with balanced classes and given backgrounds, or from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from goca.labelsets.errors import PlanError

TEMPLATE = "{objects}, {background}"
BARE = "{objects}"


@dataclass(frozen=True)
class Asked:
    """The request for one image: its caption, the class ids in it, the image's number."""

    number: int
    caption: str
    class_ids: tuple[int, ...]


def balanced(
    classes: Mapping[int, str],
    count: int,
    seed: int,
    together: tuple[int, int] = (1, 2),
    backgrounds: Sequence[str] = (),
    template: str | None = None,
) -> list[Asked]:
    """Captions in which every class occurs equally often, up to one.

    together     the fewest and the most classes of one image
    backgrounds  words; each image gets one, all of them equally often (two named together: "sky and grass")
    template     a text with {objects}, and {background} where there are backgrounds
    A larger set starts with the same captions. Raises PlanError.
    """
    template = template or (TEMPLATE if backgrounds else BARE)
    low, high = together
    if count < 1:
        raise PlanError(f"--count is {count}; expected 1 or more")
    if not classes:
        raise PlanError('no class is named; give e.g. --classes "star, fish"')
    if not 1 <= low <= high <= len(classes):
        raise PlanError(f"{low} to {high} classes per image of {len(classes)}; expected 1 <= fewest <= most <= classes")
    check_template(template, bool(backgrounds))
    random, plan = Random(seed), []
    used, seen = dict.fromkeys(classes, 0), dict.fromkeys(backgrounds, 0)
    for number in range(count):
        ids = rarest(used, random.randint(low, high), random)
        background = rarest(seen, 1, random)[0] if backgrounds else ""
        caption = template.replace("{objects}", ", ".join(classes[each] for each in ids))
        plan.append(Asked(number, caption.replace("{background}", background), tuple(sorted(ids))))
    return plan


def rarest(used: dict, count: int, random: Random) -> list:
    """The least used keys, ties in random order; their counts are increased."""
    order = list(used)
    random.shuffle(order)
    chosen = sorted(order, key=used.__getitem__)[:count]
    for each in chosen:
        used[each] += 1
    return chosen


def check_template(template: str, backgrounds: bool) -> None:
    if "{objects}" not in template:
        raise PlanError(f'the template {template!r} lacks {{objects}}; expected e.g. "a drawing of {{objects}}"')
    if ("{background}" in template) != backgrounds:
        fix = "give --backgrounds" if not backgrounds else "add {background} to it, or leave --backgrounds out"
        raise PlanError(f"the template {template!r} and the backgrounds do not fit: {fix}")


def from_captions(classes: Mapping[int, str], captions: Sequence[str], count: int) -> list[Asked]:
    """Captions from a file, repeated if necessary; each requests the classes that it names."""
    if not captions:
        raise PlanError("the file of captions holds no line; expected one caption per line")
    plan = []
    for number in range(count):
        caption = captions[number % len(captions)]
        words = f" {' '.join(''.join(c if c.isalnum() else ' ' for c in caption.lower()).split())} "
        ids = tuple(class_id for class_id, name in classes.items() if f" {name.lower()} " in words)
        if not ids:
            raise PlanError(f"the caption {caption!r} names none of the classes: {', '.join(classes.values())}")
        plan.append(Asked(number, caption, ids))
    return plan


def image_seed(seed: int, number: int, attempt: int) -> int:
    """The seed of an image's generator, 0..2^63-1: differs for every set, image and attempt."""
    digest = hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def is_validation(name: str, share: float) -> bool:
    """Whether an image belongs to the validation split; depends only on its name, so a larger set keeps the split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64
