"""What the scaling study measures of one model's segmentation: every part's counts, and where the attention goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from goca import Segmenter
from goca.evaluation import MeanIoU
from goca.prompts import PromptAnnotation, annotate
from goca.protocol import SWITCHES, Protocol
from make_scenes import WORLDS
from PIL import Image
from scipy.stats import mannwhitneyu
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


def absent_rule(protocol: str) -> str:
    """What the metric makes of a class that is neither labelled nor predicted: "skip" or "zero"."""
    return Protocol.of(VARIANTS[protocol]).absent_classes


@dataclass
class Bench:
    """A model on one world under one protocol; every part of the method on the same forwards."""

    point: Point
    segmenter: Callable[[], Segmenter]  # read when first needed
    world: str
    protocol: str  # one of VARIANTS

    made: dict[Any, Segmenter] = dataclasses.field(default_factory=dict)

    def at(self, t: int, layers: str | tuple[str, ...] = "all") -> Segmenter:
        if (t, layers) not in self.made:
            config = dataclasses.replace(self.point.config(t, VARIANTS[self.protocol]), cross_layers=layers)
            self.made[t, layers] = Segmenter(self.segmenter().extractor, config)
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
        chosen = {"t": t, "thresholds": thresholds}
        if self.protocol == "paper":
            chosen["layers"] = self.attention_shares(t, min(20, sizes.chosen_on))
            chosen["places"] = self.places(t, sizes.chosen_on)
        return chosen

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
    def attention_shares(self, t: int, count: int) -> list[dict[str, Any]]:
        """For each layer, its side, its mean weight, and the share of its attention by kind of token."""
        segmenter, sums = self.at(t), {}
        for index in range(count):
            drawn = scene(self.world, "validation", index)
            annotation = self.annotated(drawn, index, "validation", segmenter)
            capture = segmenter.capture(
                Image.fromarray(drawn.image), annotation, image_id=f"{self.world}/{index}", head_rules=HEADS[:1]
            )
            weights = capture.layer_weights(capture.plan.layer_rules[0])[0]
            for block, weight in zip(capture.plan.blocks, weights):
                mean = capture.token_maps[block][HEADS[0]][0].mean(0)
                kinds = token_kinds(annotation, len(mean))
                found = {"weight": float(weight), **{name: float(mean[at].sum()) for name, at in kinds.items()}}
                entry = sums.setdefault(block, {"side": capture.grids[block][0], **dict.fromkeys(found, 0.0)})
                for name, value in found.items():
                    entry[name] += value / count
        return [{"layer": block, **entry} for block, entry in sums.items()]

    @torch.no_grad()
    def places(self, t: int, count: int) -> dict[str, float]:
        """How well attention tells an object's cells from all others: AUC, mean over objects of validation images.

        In vanilla's aggregated maps. word: attention to the object's words;  content: to all content words;  share: the
        first divided by the second, which is what rescaling makes of it
        """
        segmenter, found = self.at(t), {"word": [], "content": [], "share": []}
        for index in range(count):
            drawn = scene(self.world, "validation", index)
            annotation = self.annotated(drawn, index, "validation", segmenter)
            image, image_id = Image.fromarray(drawn.image), f"{self.world}/{index}"
            capture = segmenter.capture(
                image, annotation, image_id=image_id, head_rules=HEADS[:1], layer_rules=LAYERS[:1]
            )
            attention = capture.attention_map(HEADS[0], LAYERS[0])[0].numpy()  # [h, w, N]
            content = attention[..., list(annotation.rescaling_token_id)].sum(-1)
            for class_id, tokens in annotation.existent_objects.items():
                inside = cells_of(drawn.label == class_id, len(attention))
                word = attention[..., tokens].sum(-1)
                if tokens and 0 < inside.sum() < inside.size:
                    for name, score in (("word", word), ("content", content), ("share", word / content)):
                        found[name].append(separation(score[inside], score[~inside]))
        return {name: float(np.mean(values)) for name, values in found.items()}


def cells_of(mask: np.ndarray, side: int) -> np.ndarray:
    """Cells that are at least half covered   [H, W] -> [side, side]"""
    height, width = (length // side for length in mask.shape)
    return mask.reshape(side, height, side, width).mean((1, 3)) >= 0.5


def separation(inside: np.ndarray, outside: np.ndarray) -> float:
    """AUC: how often a value of the first is larger than one of the second; equal ones count half."""
    statistic = mannwhitneyu(inside, outside, method="asymptotic").statistic
    return float(statistic / (inside.size * outside.size))


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


def bench_maker(point: Point, sizes: Sizes) -> Callable[[str, str], Bench]:
    """Benches by world and protocol, which share one model; it is read when something is measured."""

    @cache
    def segmenter() -> Segmenter:
        return Segmenter.from_pretrained(str(point.folder), point.config(sizes.timesteps[0], PROTOCOLS["paper"]))

    return partial(Bench, point, segmenter)


def measure_segmentation(point: Point, sizes: Sizes, store: Store) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Counts [2, seeds, n, C] by "world/protocol/part"; what was chosen: timesteps, thresholds; attention shares."""
    make, arrays, chosen = bench_maker(point, sizes), {}, {}
    for world in point.worlds:
        for protocol in PROTOCOLS:
            bench = make(world, protocol)
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
    make, arrays = bench_maker(point, sizes), {}
    for world in point.worlds:
        for variant in ("paper", *ACTING):
            counts = count_all(make(world, variant), sizes.switched, 0, chosen[f"{world}/paper"], store)
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
