"""What the scaling study measures of one model's segmentation: every part's counts, and where the attention goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from goca import Segmenter
from goca.evaluation import MeanIoU
from goca.evaluation.presence import auc_of_scores
from goca.prompts import PromptAnnotation, annotate
from goca.protocol import SWITCHES, Protocol
from make_scenes import WORLDS
from PIL import Image
from study_scenes import HEADS, LAYERS, PARTS, PROTOCOLS, RESCALES, THRESHOLDS
from tqdm import tqdm

from scaling.measures import Sizes, scene
from scaling.points import PICKED_LAYERS, Point
from scaling.store import Store

# switches that can change a score map here: noise is always seeded, drawn labels have no void and no palette
ACTING = ("reference_channels", "self_map_rows", "noise", "token_spans", "caption_grammar", "posterior")
# name -> protocol: the two presets, and `paper` with one switch set as in `released`
VARIANTS: dict[str, dict[str, str]] = {
    **PROTOCOLS,
    **{switch: {"preset": "paper", switch: released} for switch, (_, released) in SWITCHES.items() if switch in ACTING},
}
PICKED = "vanilla, hand-picked layers"
BLOCK = 50  # images that are counted, and kept, together
SHARED = 20  # images that layers' shares are taken from


def absent_rule(protocol: str) -> str:
    """What the metric makes of a class that is neither labelled nor predicted: "skip" or "zero"."""
    return Protocol.of(VARIANTS[protocol]).absent_classes


@lru_cache(maxsize=1)  # points are measured one after the other
def loaded(point: Point) -> Segmenter:
    """The model of a point; read when something is measured of it."""
    return Segmenter.from_pretrained(str(point.folder), point.config(0, PROTOCOLS["paper"]))


@dataclass
class Bench:
    """A model on one world under one protocol; every part of the method on the same forwards."""

    point: Point
    world: str
    protocol: str  # one of VARIANTS

    made: dict[Any, Segmenter] = dataclasses.field(default_factory=dict)

    def at(self, t: int, layers: str | tuple[str, ...] = "all") -> Segmenter:
        if (t, layers) not in self.made:
            config = dataclasses.replace(self.point.config(t, VARIANTS[self.protocol]), cross_layers=layers)
            self.made[t, layers] = Segmenter(loaded(self.point).extractor, config)
        return self.made[t, layers]

    def annotated(self, drawn: Any, index: int, split: str, segmenter: Segmenter) -> PromptAnnotation:
        world, extractor = WORLDS[self.world], segmenter.extractor
        caption = world.caption(drawn, world.splits[split], index)
        present = sorted(set(np.unique(drawn.label).tolist()) - {0})
        tokenizers = extractor.backbone.tokenizers(extractor.parts)
        return annotate(
            caption,
            world.classes,
            present,
            **tokenizers,
            add_background=False,
            add_missing=True,
            protocol=segmenter.protocol,
        )

    def metric(self) -> MeanIoU:
        return MeanIoU(len(WORLDS[self.world].classes), "offset", THRESHOLDS, absent=absent_rule(self.protocol))

    @torch.no_grad()
    def cells(self, split: str, index: int, t: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
        """(part, counts of one image for `MeanIoU.add`) of every part of the method."""
        drawn, segmenter = scene(self.world, split, index), self.at(t)
        annotation = self.annotated(drawn, index, split, segmenter)
        image, image_id = Image.fromarray(drawn.image), f"{self.world}/{split}/{index}#{seed}"
        capture = segmenter.capture(image, annotation, image_id=image_id, head_rules=HEADS, layer_rules=LAYERS)
        maps = {
            part: segmenter.rescale(capture.attention_map(HEADS[h], LAYERS[m])[0], annotation, RESCALES[r])
            for part, (h, m, r) in PARTS.items()
        }
        if picked := PICKED_LAYERS.get(self.point.kind):
            by_hand = self.at(t, picked)
            few = by_hand.capture(image, annotation, image_id=image_id, head_rules=HEADS[:1], layer_rules=LAYERS[:1])
            maps[PICKED] = by_hand.rescale(few.attention_map(HEADS[0], LAYERS[0])[0], annotation, RESCALES[0])
        for part, scores in maps.items():
            refined = segmenter.refine(scores, capture)
            yield part, self.metric().update(refined, drawn.label, list(annotation.existent_objects))

    def choose(self, sizes: Sizes) -> tuple[int, dict[str, float]]:
        """The timestep at which vanilla's and GoCA's mIoU have the largest mean, and each part's threshold there."""
        found: dict[int, dict[str, dict[float, float]]] = {}
        title = f"{self.point.name}: {self.world}, {self.protocol}, timestep"
        for t in tqdm(sizes.timesteps, desc=title):
            metrics: dict[str, MeanIoU] = {}
            for index in range(sizes.chosen_on):
                for part, cells in self.cells("validation", index, t, seed=0):
                    metrics.setdefault(part, self.metric()).add(cells)
            found[t] = {part: metric.compute() for part, metric in metrics.items()}
        best = {t: sum(max(found[t][part].values()) for part in ("vanilla", "GoCA")) for t in found}
        t = max(best, key=lambda each: best[each])
        return t, {part: max(curve, key=lambda level: curve[level]) for part, curve in found[t].items()}

    def choices(self, sizes: Sizes) -> dict[str, Any]:
        """What `choose` finds and, under `paper`, where the attention goes at that timestep."""
        t, thresholds = self.choose(sizes)
        where = self.attention(t, sizes.chosen_on) if self.protocol == "paper" else {}
        return {"t": t, "thresholds": thresholds, **where}

    def count(self, indices: range, seed: int, t: int, thresholds: dict[str, float]) -> dict[str, np.ndarray]:
        """Per part: intersection and union of every image and class   [2, n, C]"""
        classes = len(WORLDS[self.world].classes)
        counts = {part: np.zeros((2, len(indices), classes), np.int32) for part in thresholds}
        for i, index in enumerate(indices):
            for part, cells in self.cells("fresh", index, t, seed):
                metric, level = self.metric(), THRESHOLDS.index(thresholds[part])
                metric.add(cells)
                counts[part][:, i] = metric.intersection[level], metric.union[level]
        return counts

    @torch.no_grad()
    def attention(self, t: int, count: int) -> dict[str, Any]:
        """Where the attention goes, on validation images.

        layers  for each layer, its side, its mean weight, and the share of its attention by kind of token; at most
                `SHARED` images
        places  how well vanilla's aggregated maps tell an object's cells from all others: AUC, mean over objects. word:
                attention to the object's words;  content: to all content words;  share: the first divided by the
                second, which is what rescaling makes of it
        """
        segmenter, shared = self.at(t), min(SHARED, count)
        layers: dict[str, dict[str, Any]] = {}
        places: dict[str, list[float]] = {"word": [], "content": [], "share": []}
        for index in range(count):
            drawn = scene(self.world, "validation", index)
            annotation = self.annotated(drawn, index, "validation", segmenter)
            image, image_id = Image.fromarray(drawn.image), f"{self.world}/{index}"
            capture = segmenter.capture(image, annotation, image_id=image_id, head_rules=HEADS[:1], layer_rules=LAYERS)
            if index < shared:
                for block, found in layer_shares(capture, annotation).items():
                    entry = layers.setdefault(block, {"side": capture.grids[block][0], **dict.fromkeys(found, 0.0)})
                    for name, value in found.items():
                        entry[name] += value / shared
            attention = capture.attention_map(HEADS[0], LAYERS[0])[0].numpy()
            for separations in object_separations(attention, annotation, drawn.label):
                for name, value in separations.items():
                    places[name].append(value)
        return {
            "layers": [{"layer": block, **entry} for block, entry in layers.items()],
            "places": {name: float(np.mean(values)) for name, values in places.items()},
        }


def layer_shares(capture: Any, annotation: PromptAnnotation) -> dict[str, dict[str, float]]:
    """By layer, its weight and the share of its attention by kind of token."""
    weights = capture.layer_weights(LAYERS[1])[0]
    shares = {}
    for block, weight in zip(capture.plan.blocks, weights):
        mean = capture.token_maps[block][HEADS[0]][0].mean(0)
        kinds = token_kinds(annotation, len(mean))
        shares[block] = {"weight": float(weight), **{name: float(mean[at].sum()) for name, at in kinds.items()}}
    return shares


def object_separations(
    attention: np.ndarray, annotation: PromptAnnotation, label: np.ndarray
) -> Iterator[dict[str, float]]:
    """Of each object that covers some cells, the AUCs of `Bench.attention`   attention [h, w, N]"""
    content = attention[..., list(annotation.rescaling_token_id)].sum(-1)
    for class_id, tokens in annotation.existent_objects.items():
        inside = cells_of(label == class_id, len(attention))
        if tokens and 0 < inside.sum() < inside.size:
            word = attention[..., tokens].sum(-1)
            scores = {"word": word, "content": content, "share": word / content}
            yield {name: auc_of_scores(score[~inside], score[inside]) for name, score in scores.items()}


def cells_of(mask: np.ndarray, side: int) -> np.ndarray:
    """Cells that are at least half covered   [H, W] -> [side, side]"""
    height, width = (length // side for length in mask.shape)
    return mask.reshape(side, height, side, width).mean((1, 3)) >= 0.5


def token_kinds(annotation: PromptAnnotation, length: int) -> dict[str, list[int]]:
    """Token positions by what they are; commas count with stop words, the padding with CLIP's end."""
    objects = [token for tokens in annotation.existent_objects.values() for token in tokens]
    backgrounds = [token for tokens in annotation.background_objects for token in tokens]
    sentence = list(annotation.global_token_id)
    last = max([*objects, *backgrounds, *sentence])
    named = {*objects, *backgrounds, *sentence}
    between = [token for token in range(last) if token not in named]
    return {
        "objects": objects,
        "backgrounds": backgrounds,
        "start or end": sentence,
        "commas": between,
        "after the text": list(range(last + 1, length)),
    }


def measure_segmentation(point: Point, sizes: Sizes, store: Store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Counts [2, seeds, n, C] by "world/protocol/part"; what was chosen: timesteps, thresholds; attention shares."""
    arrays, chosen = {}, {}
    for world in point.worlds:
        for protocol in PROTOCOLS:
            bench = Bench(point, world, protocol)
            choice = store.facts(
                f"{world}-{protocol}-chosen", (sizes.chosen_on, sizes.timesteps), partial(bench.choices, sizes)
            )
            seeds = [count_all(bench, sizes.images, seed, choice, store) for seed in range(sizes.seeds)]
            arrays |= {f"{world}/{protocol}/{part}": np.stack([c[part] for c in seeds], 1) for part in seeds[0]}
            chosen[f"{world}/{protocol}"] = choice
    return arrays, chosen


def measure_switches(point: Point, chosen: dict[str, Any], sizes: Sizes, store: Store) -> dict[str, np.ndarray]:
    """Counts [2, 1, n, C] by "world/variant/part": `paper`, and with one switch set as in `released`, one noise seed.

    Timestep and thresholds are those of `paper`.
    """
    arrays = {}
    for world in point.worlds:
        for variant in ("paper", *ACTING):
            counts = count_all(Bench(point, world, variant), sizes.switched, 0, chosen[f"{world}/paper"], store)
            arrays |= {f"{world}/{variant}/{part}": count[:, None] for part, count in counts.items()}
    return arrays


def count_all(bench: Bench, images: int, seed: int, choice: dict[str, Any], store: Store) -> dict[str, np.ndarray]:
    """Per part: intersection and union of the first fresh images, in blocks that are kept   [2, n, C]"""
    t, thresholds = choice["t"], choice["thresholds"]
    title, blocks = f"{bench.point.name}: {bench.world}, {bench.protocol}, t={t}, seed {seed}", []
    for start in tqdm(range(0, images, BLOCK), desc=title, unit="block"):
        indices = range(start, min(start + BLOCK, images))
        name = f"{bench.world}-{bench.protocol}-seed{seed}-images{start}"
        count = partial(bench.count, indices, seed, t, thresholds)
        blocks.append(store.arrays(name, (len(indices), t, thresholds), count))
    return {part: np.concatenate([block[part] for block in blocks], 1) for part in thresholds}
