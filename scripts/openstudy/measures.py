"""Queries on drawn scenes and each method's results: intersections and unions, and the presence of each word."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from embedded.scene_drawing import OBJECTS, Scene, draw_scene, write_caption
from goca import Segmenter
from goca.config import load_config
from goca.evaluation import MeanIoU
from goca.open import Query
from goca.open.denoising import Denoising, word_errors
from goca.open.evidence import gather
from goca.open.finding import Answer, Finder, present
from goca.open.presence import PRESENCE_RULES
from goca.open.rest import REST_RULES
from goca.prompts import PromptAnnotation, annotate
from goca.requests import Request
from make_scenes import SPLITS
from PIL import Image
from study_scenes import HEADS, LAYERS, THRESHOLDS

SEEDS = {**SPLITS, "untouched": 404}  # the last one was not used for any choice
METHODS = {"GoCA": (HEADS[1], LAYERS[1]), "vanilla": (HEADS[0], LAYERS[0])}
WAYS = {"open": "reference spread", "probe": "denoising gain"}  # name -> rule of presence
PUBLISHED = {"GoCA": "sum-1 rescaling + per-token renorm+", "vanilla": "per-token renorm+"}
ROWS = {
    "complete": "complete captions",
    "one background": "objects and one of two backgrounds",
    "objects": "objects only",
    "single": "one of an image's two objects",
    "two absent": "complete, and two absent words",
    "absent as rest": "the same, absent words counted as background",
    "all eight": "all eight object words",
}
ID = {word: number for number, word in enumerate(OBJECTS, start=1)}


def queries(seed: int, index: int, scene: Scene) -> Iterator[tuple[str, list[str]]]:
    """(row, words) of an image; "absent" looks for one absent word."""
    chance = random.Random(index)
    words = write_caption(scene, seed, index, brackets=0).split(", ")
    absent = [word for word in OBJECTS if word not in scene.objects]
    chance.shuffle(absent)
    left_out = chance.choice(scene.backgrounds)
    yield "complete", words
    yield "one background", [word for word in words if word != left_out]
    yield "objects", [word for word in words if word in scene.objects]
    yield "two absent", [*words, *absent[:2]]
    yield "all eight", list(OBJECTS)
    if len(scene.objects) == 2:
        yield from (("single", [word]) for word in scene.objects)
    yield "absent", absent[:1]


class Study:
    """One split with one noise seed.

    rules      also measure every rule for `rest`, and every rule of presence
    published  also measure the published method on the same words
    """

    def __init__(self, split: str, seed: int, rules: bool = False, published: bool = False):
        self.split, self.seed, self.rules, self.published = split, seed, rules, published
        self.segmenter = Segmenter.from_pretrained(None, load_config("mini-sd"), device="cpu")
        names = {"open": self.segmenter.config.rest} | ({name: name for name in REST_RULES} if rules else {})
        self.finders = {name: self.finder(rest=rest) for name, rest in names.items()}
        self.probe = self.finder(presence="denoising gain")

    def finder(self, **fields: Any) -> Finder:
        return Finder(Segmenter(self.segmenter.extractor, dataclasses.replace(self.segmenter.config, **fields)))

    @torch.no_grad()
    def look(self, index: int) -> dict[str, Any]:
        """The record of one image: counts of every row, and presence of each word."""
        scene = draw_scene(SEEDS[self.split], index)
        image, name = Image.fromarray(scene.image), f"{self.split}-{index}#{self.seed}"
        asked = list(queries(SEEDS[self.split], index, scene))
        record: dict[str, Any] = {"seed": self.seed, "index": index, "counts": [], "words": []}
        both = itertools.chain(self.answers(image, name, asked), self.probed(image, name, asked))
        for way, method, (row, words), answer, raw in both:
            if row != "absent":
                record["counts"].append([way, method, row, count_open(answer, words, scene, row)])
            if row == "two absent":
                cells = count_open(answer, words, scene, row, scene.objects)
                record["counts"].append([way, method, "absent as rest", cells])
            if way in WAYS:
                there = [word in (*scene.objects, *scene.backgrounds) for word in words]
                record["words"].append([way, method, row, words, there, list(answer.presence), raw])
        if self.published:
            record["counts"] += self.count_published(image, name, asked, scene)
        return record

    def answers(self, image: Image.Image, name: str, asked: list[tuple[str, list[str]]]) -> Iterator[tuple]:
        """(way, method, query, answer, raw scores of every rule of presence): all from one forward."""
        first = self.finders["open"]
        wanted = [Query.of_words(words) for _, words in asked]
        prompts = [first.prompts(query) for query in wanted]
        flat = [prompt for own in prompts for prompt in own]
        plan = self.segmenter.plan(HEADS, LAYERS)
        capture = self.segmenter.run_forward_passes([Request(image, each, None, name, 0) for each in flat], plan)
        for method, rules in METHODS.items():
            maps = iter(list(first.prompt_maps(((capture, number) for number in range(len(flat))), *rules)))
            for query, own, row in zip(wanted, prompts, asked):
                seen = [next(maps) for _ in own]
                found = [each for *_, each in seen]
                evidence = gather(found, own, capture.space_map()[seen[0][1]])
                raw = {each: rule(evidence).tolist() for each, rule in PRESENCE_RULES.items()} if self.rules else {}
                for way, finder in self.finders.items():
                    yield way, method, row, finder.answer(image, query, own, found, *seen[0][:2]), raw

    def probed(self, image: Image.Image, name: str, asked: list[tuple[str, list[str]]]) -> Iterator[tuple]:
        """Answers with presence by denoising, measured once for both methods; one forward pass for all queries."""
        wanted = [Query.of_words(words) for _, words in asked]
        texts = list(dict.fromkeys(text for query in wanted for text in self.probe.writer.single(query)))
        options = Denoising(**self.probe.config.denoising)
        errors = dict(zip(texts, word_errors(self.probe.segmenter, [image], [texts], [name], options)[0]))
        judged = []
        for query in wanted:
            own = torch.stack([errors[text] for text in self.probe.writer.single(query)])
            judged.append(self.probe.judgement(own, query))
        prompts = [self.probe.prompts(present(query, each)) for query, each in zip(wanted, judged)]
        flat = [prompt for own in prompts for prompt in own]
        plan = self.segmenter.plan(HEADS, LAYERS)
        capture = self.segmenter.run_forward_passes([Request(image, each, None, name, 0) for each in flat], plan)
        for method, rules in METHODS.items():
            maps = iter(list(self.probe.prompt_maps(((capture, number) for number in range(len(flat))), *rules)))
            for query, own, row, each in zip(wanted, prompts, asked, judged):
                seen = [next(maps) for _ in own]
                found = [each for *_, each in seen]
                yield "probe", method, row, self.probe.answer(image, query, own, found, *seen[0][:2], each), {}

    def count_published(
        self, image: Image.Image, name: str, asked: list[tuple[str, list[str]]], scene: Scene
    ) -> list[list[Any]]:
        """Counts of the published method, with the words as the whole caption; background names are background."""
        rows = [(row, words, OBJECTS) for row, words in asked if row not in ("absent", "single")]
        rows += [("absent as rest", words, scene.objects) for row, words in asked if row == "two absent"]
        classes = [[], *([word] for word in OBJECTS)]
        tokenizer, counts = self.segmenter.extractor.parts["tokenizer"], []
        annotations = []
        for row, words, classed in rows:
            text = " ".join(words) if row == "all eight" else ", ".join(words)
            present = [ID[word] for word in words if word in classed]
            note = annotate(", ".join(words), classes, present, tokenizer, add_background=False, add_missing=False)
            annotations.append(note if text == note.caption else without_commas(note, words))
        plan = self.segmenter.plan(HEADS, LAYERS)
        capture = self.segmenter.run_forward_passes([Request(image, note, None, name, 0) for note in annotations], plan)
        for method, rules in METHODS.items():
            maps = capture.attention_map(*rules)
            for number, ((row, *_), note) in enumerate(zip(rows, annotations)):
                scores = self.segmenter.rescale(maps[number], note, PUBLISHED[method])
                scores = self.segmenter.refine(scores, capture, number)
                cells = metric(THRESHOLDS).update(scores, scene.label, note.class_ids)
                counts.append(["published", method, row, cells.tolist()])
        return counts


def without_commas(annotation: PromptAnnotation, words: list[str]) -> PromptAnnotation:
    """The prompt's words, one token each, without commas: sixteen tokens have room for fourteen words."""
    places = {word: [place] for place, word in enumerate(words, start=1) if place < 15}
    objects = {ID[word]: places.get(word, []) for word in words}
    return dataclasses.replace(
        annotation,
        caption=" ".join(words),
        existent_objects=objects,
        background_objects=[],
        rescaling_token_id=[place for own in places.values() for place in own],
    )


def metric(thresholds: list[float]) -> MeanIoU:
    return MeanIoU(len(OBJECTS) + 1, "offset", thresholds, absent="skip")


def count_open(
    answer: Answer, words: list[str], scene: Scene, row: str, classed: Sequence[str] = OBJECTS
) -> list[list[int]]:
    """Counts of an answer; words that are not `classed` count as background, and for one word everything else does."""
    objects = [number for number, word in enumerate(words) if word in classed]
    others = [number for number in range(len(answer.scores)) if number not in objects]
    scores = torch.cat([answer.scores[objects], answer.scores[others].amax(0, keepdim=True)])
    label = scene.label if row != "single" else np.where(scene.label == ID[words[0]], scene.label, 0)
    return metric([0.0]).update(scores, label, [ID[words[number]] for number in objects]).tolist()
