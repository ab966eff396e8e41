"""What looking for words (ask=open) is worth on drawn scenes: incomplete captions, absent and single words, presence.

    python3 scripts/study_open.py rules                  on the validation split: every rule for the rest and presence
    python3 scripts/study_open.py table --seeds 4        docs/open.md's table: a split that no choice was made on
    python3 scripts/study_open.py table --split fresh --seeds 1        on another split

A picture is counted once per noise seed; counts go to --work as they come, and a run that was stopped goes on. All
queries of a picture, and plain averages over heads and layers beside GoCA, share one forward. `open` has no threshold:
its settings are the config's. Beside it stands the published method on the same words at the best of 17 thresholds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded.scene_drawing import OBJECTS, Scene, draw_scene, write_caption
from goca import Segmenter
from goca.config import load_config
from goca.evaluation import MeanIoU
from goca.evaluation.presence import area_under_curve
from goca.open import Query
from goca.open.denoising import Denoising, word_errors
from goca.open.evidence import gather
from goca.open.finding import Answer, Finder, present
from goca.open.presence import PRESENCE_RULES
from goca.open.rest import REST_RULES
from goca.prompts import PromptAnnotation, annotate
from make_scenes import SPLITS
from PIL import Image
from study_scenes import HEADS, LAYERS, THRESHOLDS, interval
from tqdm import tqdm

SEEDS = {**SPLITS, "untouched": 404}  # the last: nothing was chosen on it
METHODS = {"GoCA": (HEADS[1], LAYERS[1]), "vanilla": (HEADS[0], LAYERS[0])}
WAYS = {"open": "reference spread", "probe": "denoising gain"}  # presence by the name of the way
PUBLISHED = {"GoCA": "sum-1 rescaling + per-token renorm+", "vanilla": "per-token renorm+"}
ROWS = {
    "complete": "complete captions",
    "one background": "objects and one of two backgrounds",
    "objects": "objects only",
    "single": "one object named of a picture with two",
    "two absent": "complete, and two absent words",
    "absent as rest": "the same, absent words counted as background",
    "all eight": "all eight object words",
}
ID = {word: number for number, word in enumerate(OBJECTS, start=1)}


def queries(seed: int, index: int, scene: Scene) -> Iterator[tuple[str, list[str]]]:
    """(row, words) of a picture; "absent" asks for one word that is not there."""
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
    """One split under one noise seed.

    rules      every rule for the rest beside the config's, and every rule of presence
    published  the published method on the same words too
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
        """The record of one picture: counts of every row, and what was said of each word."""
        scene = draw_scene(SEEDS[self.split], index)
        image, name = Image.fromarray(scene.picture), f"{self.split}-{index}#{self.seed}"
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
        capture = self.segmenter.observe(plan, [image], flat, [None], [name], [0] * len(flat))
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
        """The same with presence by denoising, which is measured once for both methods; one forward for all queries."""
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
        capture = self.segmenter.observe(plan, [image], flat, [None], [name], [0] * len(flat))
        for method, rules in METHODS.items():
            maps = iter(list(self.probe.prompt_maps(((capture, number) for number in range(len(flat))), *rules)))
            for query, own, row, each in zip(wanted, prompts, asked, judged):
                seen = [next(maps) for _ in own]
                found = [each for *_, each in seen]
                yield "probe", method, row, self.probe.answer(image, query, own, found, *seen[0][:2], each), {}

    def count_published(
        self, image: Image.Image, name: str, asked: list[tuple[str, list[str]]], scene: Scene
    ) -> list[list[Any]]:
        """Counts of the published method, for which the words are the whole caption; backgrounds are background."""
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
        capture = self.segmenter.observe(plan, [image], annotations, [None], [name], [0] * len(rows))
        for method, rules in METHODS.items():
            maps = capture.attention_map(*rules)
            for number, ((row, *_), note) in enumerate(zip(rows, annotations)):
                scores = self.segmenter.rescale(maps[number], note, PUBLISHED[method])
                scores = self.segmenter.refine(scores, capture, number)
                cells = metric(THRESHOLDS).update(scores, scene.label, note.class_ids)
                counts.append(["published", method, row, cells.tolist()])
        return counts


def without_commas(annotation: PromptAnnotation, words: list[str]) -> PromptAnnotation:
    """The same words, one token each, without the commas between them: sixteen tokens hold no more than fourteen."""
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
    """Counts of an answer; where it says a word that is not `classed` is background, and for one word all but it is."""
    objects = [number for number, word in enumerate(words) if word in classed]
    others = [number for number in range(len(answer.scores)) if number not in objects]
    scores = torch.cat([answer.scores[objects], answer.scores[others].amax(0, keepdim=True)])
    label = scene.label if row != "single" else np.where(scene.label == ID[words[0]], scene.label, 0)
    return metric([0.0]).update(scores, label, [ID[words[number]] for number in objects]).tolist()


# --- records and tables ---------------------------------------------------------------------------------------------


def records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One per noise seed and picture; what the file already holds is not made again."""
    file = arguments.work / f"open-{arguments.study}-{arguments.split}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    done = {(record["seed"], record["index"]) for record in found}
    with file.open("a") as out:
        for seed in range(arguments.seeds):
            left = [index for index in range(arguments.count) if (seed, index) not in done]
            published = seed == 0 and arguments.study == "table"
            study = Study(arguments.split, seed, arguments.study == "rules", published) if left else None
            for index in tqdm(left, desc=f"{arguments.split}, noise seed {seed}", unit="picture"):
                found.append(study.look(index))
                out.write(json.dumps(found[-1]) + "\n")
                out.flush()
    return [each for each in found if each["index"] < arguments.count and each["seed"] < arguments.seeds]


def scored(found: list[dict[str, Any]], way: str, method: str, row: str, seed: int) -> float:
    """mIoU in per cent, at the best threshold where there are several; of one object, the mean over the objects."""
    metrics = metric(THRESHOLDS if way == "published" else [0.0])
    for record in found:
        for *of, cells in record["counts"] if record["seed"] == seed else ():
            if of == [way, method, row]:
                metrics.add(cells)
    per_class = metrics.per_class()[:, 1:] if row == "single" else metrics.per_class()
    return 100 * float(np.nanmax(np.nanmean(per_class, 1)))


def auc(found: list[dict[str, Any]], way: str, method: str, row: str, seed: int, rule: str | None = None) -> float:
    """Of presence, over all words asked for in a row; of queries of one word over these."""
    rows = ("objects", "single", "absent") if row == "single" else (row,)
    said = [
        (score, there)
        for record in found
        if record["seed"] == seed
        for by, of, kind, words, truth, presence, raw in record["words"]
        if (by, of) == (way, method) and kind in rows and (row != "single" or len(words) == 1)
        for score, there in zip(raw[rule] if rule else presence, truth)
    ]
    levels = sorted({score for score, _ in said})
    counts = [
        np.bincount(np.searchsorted(levels, [s for s, there in said if there == kind]), minlength=len(levels))
        for kind in (False, True)
    ]
    return float(area_under_curve(*counts))


def print_table(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    seeds = range(arguments.seeds)

    def cell(values: list[float], digits: int = 1) -> str:
        mean, wide = interval(values)
        return f"{mean:.{digits}f}" + (f" ± {wide:.{digits}f}" if len(values) > 1 else "")

    columns = [f"{method}, {kind}" for method in METHODS for kind in ("published, best threshold", *WAYS.values())]
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row, name in ROWS.items():
        cells = []
        for method in METHODS:
            cells.append("" if row == "single" else f"{scored(found, 'published', method, row, 0):.1f}")
            cells += [cell([scored(found, way, method, row, seed) for seed in seeds]) for way in WAYS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for row in ("two absent", "all eight", "single"):
        cells = []
        for method in METHODS:
            cells += ["", *(cell([auc(found, way, method, row, seed) for seed in seeds], 3) for way in WAYS)]
        print(f"| presence, AUC: {ROWS[row] if row != 'single' else 'single words'} | " + " | ".join(cells) + " |")
    for way, rule in WAYS.items():
        print(f"\n{rule}")
        print_reliability(found, way)


def print_reliability(found: list[dict[str, Any]], way: str) -> None:
    """How often a word was there, by the presence that it was given; of absent, all eight and single words."""
    said = np.array(
        [
            (p, there)
            for record in found
            for by, of, row, words, truth, presence, _ in record["words"]
            if (by, of) == (way, "GoCA") and (row in ("two absent", "all eight") or len(words) == 1)
            for p, there in zip(presence, truth)
        ],
        float,
    )
    print("\n| presence | words | mean presence | were there |\n|---|---|---|---|")
    for low in np.arange(0, 1, 0.1):
        own = said[(said[:, 0] >= low) & (said[:, 0] < low + 0.1 + (low > 0.85))]
        if len(own):
            print(f"| {low:.1f} to {low + 0.1:.1f} | {len(own)} | {own[:, 0].mean():.2f} | {own[:, 1].mean():.2f} |")


def print_rules(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    for method in METHODS:
        print(f"\n| {method}: rule for the rest | " + " | ".join(ROWS.values()) + " |\n|---|" + "---|" * len(ROWS))
        for rule in REST_RULES:
            cells = [f"{scored(found, rule, method, row, 0):.1f}" for row in ROWS]
            print(f"| {rule} | " + " | ".join(cells) + " |")
        print(f"\n| {method}: rule of presence, AUC | two absent | all eight | single |\n|---|---|---|---|")
        for rule in PRESENCE_RULES:
            cells = [f"{auc(found, 'open', method, row, 0, rule):.3f}" for row in ("two absent", "all eight", "single")]
            print(f"| {rule} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("rules", "table"))
    parser.add_argument("--split", choices=SEEDS, help="validation for rules, untouched for the table")
    parser.add_argument("--count", type=int, default=200, help="pictures")
    parser.add_argument("--seeds", type=int, default=1, help="noise seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="where counts go")
    arguments = parser.parse_args()
    arguments.split = arguments.split or ("validation" if arguments.study == "rules" else "untouched")
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = records(arguments)
    (print_rules if arguments.study == "rules" else print_table)(found, arguments)


if __name__ == "__main__":
    main()
