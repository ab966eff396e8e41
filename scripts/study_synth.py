"""Measure the value of generated pairs and pseudo-labels as training data, compared with true masks.

    python3 scripts/study_synth.py generate --count 2480     synthetic pairs
    python3 scripts/study_synth.py label --count 2000        fresh scenes and their pseudo-labels from tags
    python3 scripts/study_synth.py train                     a small U-Net on each, tested on the 200 committed scenes
    python3 scripts/study_synth.py figure                    docs/data.png, docs/data.json and the table

Every part resumes when it is run again after an interruption. `--rank R --ranks N` divides the first part among N
processes; several processes may train different `--sizes` or `--seeds` at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from embedded.pen import SIZE
from embedded.scene_drawing import OBJECTS, draw_scene
from goca import Segmenter
from goca.config import load_config
from goca.embedded import embedded_pipeline
from goca.files.atomic import whole_file, write_arrays, write_png, write_text
from goca.files.bounded_json import read_json
from goca.files.log import sealed_lines
from goca.labelsets.decision import decide
from goca.labelsets.plan import balanced
from goca.labelsets.pseudo import Labelling, Photo, label_photos
from goca.labelsets.store import Store
from goca.labelsets.synthetic import Generation, Generator, generate
from goca.open import Query
from make_scenes import SPLITS
from PIL import Image
from torch import nn
from tqdm import tqdm

BATCH = 16
RATE = 1e-2  # 3e-3 and 300 steps left one to three classes unlearned, even with true masks
PARTS = ("images", "labels")
REFINED = ("affinity", "pamr")  # in place of the config's chain, for the second set of pseudo-labels
CLASSES = dict(enumerate(OBJECTS, start=1))
UPPER, LOWER = ("sky", "wall", "forest"), ("grass", "sand", "water", "road", "snow")
BACKGROUNDS = [f"{upper}, {lower}" for upper in UPPER for lower in LOWER]
HOW = Generation(steps=10, guidance=4.0, traced="second half", tries=2, batch=16)  # 20 steps did not fit two CPU cores


def generate_pairs(folder: Path, count: int, rank: int, ranks: int) -> None:
    """Generate `count` synthetic pairs in folder/synthetic, including dropped ones."""
    pipe = embedded_pipeline()
    pipe.set_progress_bar_config(disable=True)
    store = Store(folder / "synthetic", HOW.settings(), rank)
    generator = Generator(pipe, load_config("mini-sd"), CLASSES, HOW)
    plan = balanced(CLASSES, count, HOW.seed, (1, 2), BACKGROUNDS)
    for _ in tqdm(generate(generator, plan, store, rank, ranks), total=count // ranks, unit="image"):
        pass


# ---- fresh scenes with pseudo-labels, and with true masks


def label_scenes(folder: Path, count: int, refined: int) -> None:
    """Fresh scenes in folder/fresh.npz: images, true masks, pseudo-labels from the objects' names, and refined ones for
    the first scenes."""
    scenes = [draw_scene(SPLITS["fresh"], number) for number in range(count)]
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    asked = []
    for number, scene in enumerate(scenes):
        path = photos / f"{number:06d}.png"
        if not path.is_file():
            write_png(path, Image.fromarray(scene.image))
        asked.append(Photo(path, path.stem, tuple(sorted(OBJECTS.index(name) + 1 for name in scene.objects))))
    arrays = {
        "images": np.stack([scene.image for scene in scenes]),
        "true": np.stack([scene.label for scene in scenes]),
        "pseudo": pseudo_labels(folder / "pseudo", asked, {}),
        "refined": pseudo_labels(folder / "refined", asked[:refined], {"refine": REFINED}),
    }
    write_arrays(folder / "fresh.npz", arrays)


def pseudo_labels(folder: Path, photos: list[Photo], fields: dict[str, Any]) -> np.ndarray:
    """The label maps that `goca label` makes with its defaults, or with other fields of the config   [N, H, W]"""
    store = Store(folder, {"doubt": 0.1, "batch": 8, **fields})
    segmenter = Segmenter.from_pretrained(None, load_config("mini-sd", least_presence=0.0, **fields))
    for _ in tqdm(label_photos(Labelling(segmenter, CLASSES), photos, store, 8), total=len(photos), unit="image"):
        pass
    return np.stack([store.label(photo.name) for photo in photos])


# ---- a small U-Net


class Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int):
        layers = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Images [B, 3, 64, 64] in 0..1 -> logits [B, classes, 64, 64]; 2 x 2 pixels are one cell of its finest level."""

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        sizes = [width, 2 * width, 2 * width]
        self.down = nn.ModuleList(Block(i, o) for i, o in zip([12, *sizes], sizes))
        self.side = nn.ModuleList(nn.Conv2d(low, skip, 1) for low, skip in zip(sizes[:0:-1], sizes[-2::-1]))
        self.up = nn.ModuleList(Block(size, size) for size in sizes[-2::-1])
        self.head = nn.Conv2d(width, 4 * classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = F.pixel_unshuffle(x, 2), []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        skips.pop()
        for side, block in zip(self.side, self.up):
            x = block(F.interpolate(side(x), scale_factor=2.0, mode="nearest") + skips.pop())
        return F.pixel_shuffle(self.head(x), 2)


def fit(images: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> UNet:
    """Train with AdamW, a cosine schedule and mirrored images; pixels of 255 are ignored."""
    torch.manual_seed(seed)
    model = UNet(len(CLASSES) + 1).to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(labels).long()
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=random)
        batch, target = x[chosen], y[chosen]
        if torch.rand((), generator=random) < 0.5:
            batch, target = batch.flip(-1), target.flip(-1)
        logits = model(batch.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, target, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


# ---- what each is worth


def miou(found: np.ndarray, true: np.ndarray) -> float:
    """Mean IoU over the classes and the background, in percent   [N, H, W] each"""
    ids = range(len(CLASSES) + 1)
    ious = [((found == i) & (true == i)).sum() / max(((found == i) | (true == i)).sum(), 1) for i in ids]
    return 100 * float(np.mean(ious))


def committed() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """The 200 scenes of the test split: images, true masks, the objects' class ids."""
    scenes = [draw_scene(SPLITS["test"], number) for number in range(200)]
    ids = [sorted(OBJECTS.index(name) + 1 for name in scene.objects) for scene in scenes]
    return np.stack([scene.image for scene in scenes]), np.stack([scene.label for scene in scenes]), ids


def training_sets(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the sets (a), (b), (c) that exist."""
    sets = {}
    if (folder / "synthetic").is_dir():
        records = [each for path in (folder / "synthetic").glob("log*.jsonl") for each in sealed_lines(path)]
        names = sorted(each["name"] for each in records if not each["dropped"])
        pairs = [
            [np.asarray(Image.open(folder / "synthetic" / part / f"{name}.png")) for name in names] for part in PARTS
        ]
        sets["a synthetic"] = np.stack(pairs[0]), np.stack(pairs[1])
    with np.load(folder / "fresh.npz") as fresh:
        images = fresh["images"]
        labels = {
            "b pseudo-labels": fresh["pseudo"],
            "r pseudo-labels, pamr": fresh["refined"],
            "c true masks": fresh["true"],
        }
    return sets | {name: (images[: len(own)], own) for name, own in labels.items()}


def train(folder: Path, sizes: list[int], seeds: list[int], steps: int) -> None:
    """Write results/SIZE-SEED.json, mIoU by set, and results/segmentor.json; existing results are kept."""
    sets, (images, true, ids) = training_sets(folder), committed()
    own_path = folder / "results/segmentor.json"
    own_path.parent.mkdir(exist_ok=True)
    if not own_path.is_file():
        write_text(own_path, json.dumps(segmentor_miou(images, true, ids)) + "\n")
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for size, seed, (name, (own, labels)) in itertools.product(sizes, seeds, sets.items()):
        path = folder / f"results/{size}-{seed}.json"
        results = read_json(path) if path.is_file() else {"steps": steps}
        if name in results or len(own) < size:
            continue
        model = fit(own[:size], labels[:size], seed, steps)
        with torch.no_grad():
            found = model(x).argmax(1).numpy()
        results[name] = round(miou(found, true), 3)
        write_text(path, json.dumps(results, indent=1) + "\n")
        print(f"{name}, {size} images, seed {seed}: {results[name]:.1f}", flush=True)


def segmentor_miou(images: np.ndarray, true: np.ndarray, ids: list[list[int]]) -> float:
    """mIoU of the segmentor itself, given the objects' names."""
    segmenter = Segmenter.from_pretrained(None, "mini-sd")
    queries = [Query.of({each: [CLASSES[each]] for each in own}) for own in ids]
    answers = segmenter.look_for([Image.fromarray(image) for image in images], queries)
    found = [decide(answer.scores, [*answer.class_ids, 0], (SIZE, SIZE)).label for answer in answers]
    return round(miou(np.stack(found), true), 3)


LETTERS = {"a synthetic": "(a) generated pairs", "b pseudo-labels": "(b) pseudo-labels"}
LETTERS |= {"r pseudo-labels, pamr": "(b) pseudo-labels refined by pamr", "c true masks": "(c) true masks"}


def figure(folder: Path, out: Path) -> None:
    """mIoU against N with 95 % intervals over the seeds (Student's t): a PNG, the numbers as JSON, the table's rows."""
    import matplotlib.pyplot as plt
    from scipy.stats import t

    segmentor, runs = read_json(folder / "results/segmentor.json"), dict[str, dict[int, list[float]]]()
    for path in sorted((folder / "results").glob("*-*.json")):
        for name, value in read_json(path).items():
            if name in LETTERS:
                runs.setdefault(name, {}).setdefault(int(path.stem.split("-")[0]), []).append(value)
    axes = plt.figure(figsize=(6, 4)).gca()
    print(f"the segmentor itself: {segmentor:.1f}")
    for number, (name, shown) in enumerate(LETTERS.items()):
        sizes = dict(sorted((size, own) for size, own in runs.get(name, {}).items() if len(own) > 1))
        if not sizes:
            continue
        mean = [np.mean(own) for own in sizes.values()]
        half = [t.ppf(0.975, len(own) - 1) * np.std(own, ddof=1) / len(own) ** 0.5 for own in sizes.values()]
        at = np.array([*sizes]) * 1.03 ** (number - 1.5)  # side by side
        axes.errorbar(at, mean, half, marker="o", capsize=4, label=shown)
        print(f"{shown} | " + " | ".join(f"{n}: {m:.1f} ± {h:.1f}" for n, m, h in zip(sizes, mean, half)))
    axes.axhline(segmentor, color="grey", linestyle="--", label="the segmentor, told the tags")
    axes.set(xlabel="training images", ylabel="mIoU on 200 scenes, %", xscale="log")
    ticks = sorted({size for own in runs.values() for size in own})
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    with whole_file(out) as temporary:
        axes.figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    write_text(out.with_suffix(".json"), json.dumps({"segmentor": segmentor, "miou": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("generate", "label", "train", "figure"))
    parser.add_argument("--out", type=Path, default=Path("runs/study_synth"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument(
        "--refined", type=int, default=104, help="number of scenes that also get pseudo-labels refined by pamr"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500], help="numbers of training images for the part train"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=600, help="training steps of the U-Net, for every number of images"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "generate":
        generate_pairs(arguments.out, arguments.count, arguments.rank, arguments.ranks)
    elif arguments.part == "label":
        label_scenes(arguments.out, arguments.count, arguments.refined)
    elif arguments.part == "train":
        train(arguments.out, arguments.sizes, arguments.seeds, arguments.steps)
    else:
        figure(arguments.out, Path(__file__).parents[1] / "docs/data.png")


if __name__ == "__main__":
    main()
