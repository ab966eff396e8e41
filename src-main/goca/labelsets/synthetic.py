"""Image-mask pairs from a generator, with masks from its attention during the generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from goca.config import SegmenterConfig
from goca.generation.calling import call_arguments
from goca.generation.trace import trace
from goca.labelsets.decision import Decision, decide
from goca.labelsets.errors import PlanError
from goca.labelsets.plan import Asked, image_seed
from goca.labelsets.store import Store, open_batches
from goca.open import Query
from goca.prompts.words import WordNotFound
from goca.segmenter import Segmenter

# name -> which of `count` denoising steps the masks are averaged over
STEP_RULES: dict[str, Callable[[int], slice]] = {
    "all": lambda count: slice(0, count),
    "first half": lambda count: slice(0, (count + 1) // 2),
    "second half": lambda count: slice(count // 2, count),
    "last quarter": lambda count: slice(count - max(1, count // 4), count),
}
ABSENT = ("drop", "mark")  # what becomes of an image without a class that it was asked for


@dataclass(frozen=True)
class Generation:
    """How images are generated and labelled; all fields are stored in the set's settings.

    steps, guidance   the pipeline's denoising steps and guidance scale
    traced            a name of STEP_RULES: the steps whose attention gives the mask
    seed              seed of the set
    tries             generations per image before it is dropped or marked
    absent            "drop" or "mark": what happens to an image that lacks a requested class
    least_area        share of the pixels, 0..1; a class with a smaller area counts as absent
    least_presence    presence (0..1, goca.open); a class with a lower one counts as absent. 0: no check
    doubt             see goca.labelsets.decision
    """

    steps: int = 20
    guidance: float = 4.0
    traced: str = "second half"
    seed: int = 0
    tries: int = 3
    absent: str = "drop"
    least_area: float = 0.005
    least_presence: float = 0.5
    doubt: float = 0.1
    batch: int = 8

    def __post_init__(self) -> None:
        if self.traced not in STEP_RULES:
            raise PlanError(f"--trace-steps is {self.traced!r}; expected one of: {', '.join(STEP_RULES)}")
        if self.absent not in ABSENT:
            raise PlanError(f"--absent is {self.absent!r}; expected one of: {', '.join(ABSENT)}")
        for name in ("steps", "tries", "batch"):
            if getattr(self, name) < 1:
                raise PlanError(f"--{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("least_area", "least_presence", "doubt"):
            if not 0 <= getattr(self, name) <= 1:
                raise PlanError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected 0 to 1")

    def settings(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """One attempt at an image: the result, and the classes that it lacks.

    withheld   whether the pipeline's safety checker replaced the image by a black one, which lacks every class
    """

    image: Image.Image
    decision: Decision
    missing: tuple[int, ...]
    presence: Mapping[int, float] = field(default_factory=dict)
    withheld: bool = False


class Generator:
    """Generates and labels images with a pipeline. Raises PlanError if a class name is truncated."""

    def __init__(self, pipe: Any, config: SegmenterConfig, classes: Mapping[int, str], how: Generation):
        self.pipe, self.config, self.classes, self.how = pipe, config, classes, how
        segmenter = Segmenter.from_pretrained(pipe, config)
        self.finder = segmenter.finder()
        _, cut = segmenter.fitted(list(classes.values()), "open")
        if cut:
            raise PlanError(f"the text encoder cuts the words of: {', '.join(cut)}; choose shorter names")

    def pairs(self, asked: Sequence[Asked], attempt: int) -> list[Pair]:
        """Generate one image for each caption, with its label map."""
        how = self.how
        seeds = [image_seed(how.seed, each.number, attempt) for each in asked]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with trace(self.pipe, self.config, STEP_RULES[how.traced](how.steps)) as traced:
            result = self.pipe(
                [each.caption for each in asked],
                num_inference_steps=how.steps,
                generator=generators,
                **call_arguments(self.config, len(asked), how.guidance),
            )
        images = list(traced.images)
        presence = self.presence(images, asked, seeds)
        withheld = getattr(result, "nsfw_content_detected", None) or [False] * len(images)
        pairs = [
            self.pair(traced, place, image, each, presence[place])
            for place, (image, each) in enumerate(zip(images, asked))
        ]
        return [
            replace(pair, missing=each.class_ids, withheld=True) if hidden else pair
            for pair, each, hidden in zip(pairs, asked, withheld)
        ]

    def pair(self, traced: trace, place: int, image: Image.Image, asked: Asked, presence: Mapping[int, float]) -> Pair:
        try:
            found = traced.segment([self.classes[each] for each in asked.class_ids], place)
        except WordNotFound as error:
            raise PlanError(
                f"the text encoder cuts the words of a class, or reads them otherwise: {error}; choose shorter names, "
                "fewer of them --together, or a shorter --template"
            ) from None
        ids = {name.lower(): class_id for class_id, name in self.classes.items()}
        own = [ids.get(name.lower(), 0) if class_id else 0 for class_id, name in zip(found.class_ids, found.names)]
        decision = decide(found.scores, own, (image.height, image.width), self.how.doubt)
        missing = [
            each
            for each in asked.class_ids
            if decision.areas.get(each, 0) < self.how.least_area or presence.get(each, 1) < self.how.least_presence
        ]
        return Pair(image, decision, tuple(missing), presence)

    def presence(self, images: Sequence[Any], asked: Sequence[Asked], seeds: Sequence[int]) -> list[dict[int, float]]:
        """For each image, the probability that each requested class is present, judged by the finished image."""
        if not self.how.least_presence:
            return [{} for _ in images]
        queries = [Query.of({class_id: [self.classes[class_id]] for class_id in each.class_ids}) for each in asked]
        answers = self.finder.answers(images, queries, image_ids=[str(seed) for seed in seeds])
        return [dict(zip(answer.class_ids, answer.presence)) for answer in answers]


def name_of(number: int) -> str:
    return f"{number:06d}"


def generate(
    generator: Generator, plan: Sequence[Asked], store: Store, rank: int = 0, ranks: int = 1
) -> Iterator[dict[str, Any]]:
    """Generate the missing images; yields the record of each image when it is written.

    A record has name, prompt, seed, tries, classes (requested), missing, withheld, dropped, doubt, areas, presence.
    """
    how = generator.how
    names = [name_of(each.number) for each in plan]
    for batch in open_batches(plan, names, store.records(), how.batch, rank, ranks):
        open_, best = list(batch), {}
        for attempt in range(how.tries):
            for each, pair in zip(open_, generator.pairs(open_, attempt)):
                best[each.number] = (attempt, pair)
            open_ = [each for each in open_ if best[each.number][1].missing]
            if not open_:
                break
        for each in batch:
            record = write(generator, store, each, *best[each.number])
            store.add(record)
            yield record


def write(generator: Generator, store: Store, asked: Asked, attempt: int, pair: Pair) -> dict[str, Any]:
    """Write the files of an image, unless it is dropped; returns its record."""
    how, classes, name = generator.how, generator.classes, name_of(asked.number)
    dropped = pair.withheld or (bool(pair.missing) and how.absent == "drop")
    if not dropped:
        store.save_image(name, pair.image)
        store.save_label(name, pair.decision.label)
    return {
        "name": name,
        "prompt": asked.caption,
        "seed": image_seed(how.seed, asked.number, attempt),
        "tries": attempt + 1,
        "classes": [classes[each] for each in asked.class_ids],
        "missing": [classes[each] for each in pair.missing],
        "withheld": pair.withheld,
        "dropped": dropped,
        "doubt": round(pair.decision.doubt, 6),
        "areas": {classes[each]: round(area, 6) for each, area in pair.decision.areas.items()},
        "presence": {classes[each]: round(value, 4) for each, value in pair.presence.items()},
    }


def never_there(records: Sequence[Mapping[str, Any]], classes: Mapping[int, str]) -> dict[str, int]:
    """Requested classes that never appeared: name -> tries."""
    tries = dict.fromkeys(classes.values(), 0)
    came: set[str] = set()
    for record in records:
        came |= set(record["classes"]) - set(record["missing"])
        for name in record["classes"]:
            tries[name] += record["tries"]
    return {name: count for name, count in tries.items() if count and name not in came}
