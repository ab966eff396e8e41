"""What the scaling study measures of one model: how it draws, how it segments, and where its attention goes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from embedded import scenes_hard
from embedded.backgrounds import LOWER, UPPER
from embedded.mini_data import HELD_OUT_SEED, draw_images, encode_images, to_unit
from embedded.mini_family import KINDS, guided, networks_of
from embedded.pen import SIZE
from embedded.resumable_training import pick_device
from goca import Segmenter
from goca.evaluation import MeanIoU
from goca.prompts import PromptAnnotation, annotate
from make_scenes import WORLDS
from PIL import Image
from study_scenes import HEADS, LAYERS, PARTS, PROTOCOLS, RESCALES, THRESHOLDS
from torch import Tensor
from tqdm import tqdm
from train_mini import Latents, held_out_loss

from scaling.points import PICKED_LAYERS, Point

WORDS = (*scenes_hard.OBJECTS, *UPPER, *LOWER)  # scenes' objects are among those of scenes-hard
GUIDANCE, BATCH = 4.0, 8
PICKED = "vanilla, hand-picked layers"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. images: of the fresh split;  chosen_on: of the validation split;  seeds: of the noise"""

    images: int = 200
    chosen_on: int = 60
    seeds: int = 3
    timesteps: tuple[int, ...] = (50, 100, 200, 300, 400, 500)
    generated: int = 200
    steps: int = 20
    real: int = 2000
    network: int = 6000  # images of each world that the feature network is trained on


SIZES = {
    "full": Sizes(),
    "reduced": Sizes(images=100, chosen_on=30, seeds=2, timesteps=(100, 200, 300, 400), generated=100, real=1000),
    "quick": Sizes(images=6, chosen_on=3, seeds=1, timesteps=(200, 400), generated=4, steps=2, real=64, network=64),
}


@cache
def scene(world: str, split: str, index: int) -> Any:
    return WORLDS[world].draw(WORLDS[world].splits[split], index)


def shown(drawn: Any) -> list[bool]:
    """Which of WORDS a scene shows   [22]"""
    return [word in drawn.objects or word in drawn.backgrounds for word in WORDS]


def examples(world: str, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 64, 64] in -1..1 and the words in them [n, 22]."""
    drawn = [WORLDS[world].draw(WORLDS[world].splits[split], index) for index in tqdm(indices, desc=f"{world}/{split}")]
    images = to_unit(np.stack([each.image for each in drawn]), torch.device("cpu"))
    return images, torch.tensor([shown(each) for each in drawn])


# --- generation ------------------------------------------------------------------------------------------------------


def prompt_of(world: str, index: int) -> str:
    """All that a fresh scene shows, by the classes' own names, in any order."""
    drawn = scene(world, "fresh", index)
    words = [*drawn.objects, *drawn.backgrounds]
    return ", ".join(words[i] for i in np.random.RandomState([index, 80]).permutation(len(words)))


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], sizes: Sizes, title: str) -> np.ndarray:
    """One image per prompt, its first noise seeded by the prompt's number   [n, 64, 64, 3] in 0..1"""
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=title, unit="batch"):
        some = list(prompts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        arguments = guided(pipe, GUIDANCE, len(some))
        made = pipe(some, num_inference_steps=sizes.steps, generator=generators, output_type="np", **arguments).images
        images.append(reduced(made))
    return np.concatenate(images)


def reduced(images: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, so that every image is 64 x 64   [n, 64k, 64k, 3] -> [n, 64, 64, 3]"""
    factor = images.shape[1] // SIZE
    return images.reshape(len(images), SIZE, factor, SIZE, factor, 3).mean((2, 4))


def measure_generation(point: Point, sizes: Sizes, network: Any, work: Path) -> dict[str, np.ndarray]:
    """By world: features [n, 64] and words seen [n, 22] of generated images, and the loss on held-out ones."""
    pipe = DiffusionPipeline.from_pretrained(point.folder, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    found: dict[str, np.ndarray] = {}
    for world in point.worlds:
        prompts = [prompt_of(world, index) for index in range(sizes.generated)]
        images = generate(pipe.to(pick_device()), prompts, sizes, f"{point.name}: images of {world}")
        save_sheet(images, work / f"{world}.png")
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
        with torch.no_grad():
            found[f"{world}/features"] = network(tensor).double().numpy()
            found[f"{world}/seen"] = network.seen(tensor).numpy()
        found[f"{world}/loss"] = np.array(validation_loss(pipe, point.kind, world, sizes, work))
    return found


def validation_loss(pipe: DiffusionPipeline, kind: str, world: str, sizes: Sizes, work: Path) -> float:
    """The denoiser's own loss on held-out images; kinds with other latents or other targets do not compare."""
    device, vae = pick_device(), pipe.vae
    images, words = draw_images(work.parent.parent / "data", {world: min(64, sizes.real)}, HELD_OUT_SEED)
    values = encode_images(work / f"held-out-{world}.npy", vae, images, device, KINDS[kind].enlarge)
    latents = Latents(values, words, vae.config.scaling_factor)
    return held_out_loss(networks_of(pipe, device), latents, device)


def save_sheet(images: np.ndarray, file: Path, columns: int = 10, rows: int = 4) -> None:
    """The first images side by side, to be looked at."""
    images = (255 * images[: columns * rows]).round().astype(np.uint8)
    blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
    grid = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    Image.fromarray(tiled(grid)).save(file)


def tiled(grid: np.ndarray) -> np.ndarray:
    """[rows, columns, h, w, 3] -> [rows * h, columns * w, 3]"""
    rows, columns, h, w, channels = grid.shape
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, channels)


# --- segmentation ----------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A model on one world under one protocol; every part of the method on the same forwards."""

    point: Point
    segmenter: Segmenter
    world: str
    protocol: str

    made: dict[Any, Segmenter] = dataclasses.field(default_factory=dict)

    def at(self, t: int, layers: str | tuple[str, ...] = "all") -> Segmenter:
        if (t, layers) not in self.made:
            config = dataclasses.replace(self.point.config(t, PROTOCOLS[self.protocol]), cross_layers=layers)
            self.made[t, layers] = Segmenter(self.segmenter.extractor, config)
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
        skip = self.at(0).protocol.absent_classes == "skip"
        return MeanIoU(len(WORLDS[self.world].classes), "offset", THRESHOLDS, absent="skip" if skip else "zero")

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

    def count(self, sizes: Sizes, t: int, thresholds: dict[str, float]) -> dict[str, np.ndarray]:
        """Per part: intersection and union of every noise seed, image and class   [2, seeds, n, C]"""
        classes = len(WORLDS[self.world].classes)
        counts = {part: np.zeros((2, sizes.seeds, sizes.images, classes), np.int32) for part in thresholds}
        bar = tqdm(total=sizes.seeds * sizes.images, desc=f"{self.point.name}: {self.world}, {self.protocol}, t={t}")
        for seed in range(sizes.seeds):
            for index in range(sizes.images):
                for part, cells in self.cells("fresh", index, t, seed):
                    metric, level = self.metric(), THRESHOLDS.index(thresholds[part])
                    metric.add(cells)
                    counts[part][:, seed, index] = metric.intersection[level], metric.union[level]
                bar.update()
        bar.close()
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


def measure_segmentation(point: Point, sizes: Sizes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Counts by "world/protocol/part", and what was chosen: timesteps, thresholds, attention shares."""
    segmenter = Segmenter.from_pretrained(str(point.folder), point.config(sizes.timesteps[0], PROTOCOLS["paper"]))
    arrays, chosen = {}, {}
    for world in point.worlds:
        for protocol in PROTOCOLS:
            bench = Bench(point, segmenter, world, protocol)
            t, thresholds = bench.choose(sizes)
            for part, counts in bench.count(sizes, t, thresholds).items():
                arrays[f"{world}/{protocol}/{part}"] = counts
            chosen[f"{world}/{protocol}"] = {"t": t, "thresholds": thresholds}
            if protocol == "paper":
                chosen[f"{world}/{protocol}"]["layers"] = bench.attention_shares(t, min(20, sizes.chosen_on))
    return arrays, chosen


def digest(point: Point, sizes: Sizes) -> str:
    """Of the weights and of what is measured: results with another one are measured anew."""
    seen = hashlib.sha256(repr(sizes).encode())
    for file in sorted(point.folder.glob("*/*.safetensors")):
        seen.update(file.read_bytes())
    return seen.hexdigest()[:16]
