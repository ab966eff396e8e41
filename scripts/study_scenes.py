"""Measure each part of the method on the embedded model: mIoU by part, protocol, split, timestep and noise seed.

    python3 scripts/study_scenes.py timesteps      on the validation split, one noise seed
    python3 scripts/study_scenes.py settings       the same for reference layer, space layers, affinity order
    python3 scripts/study_scenes.py layers         the same for each layer's attention and weight
    python3 scripts/study_scenes.py parts          the table of docs/embedded-model.md: two splits, four noise seeds

The settings in configs/model/mini-sd.yaml were chosen with the first two, under the paper protocol.

All variants of an image share one forward pass. Intervals are over noise seeds (95 %, Student's t).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from goca import Segmenter
from goca.config import load_config
from goca.datasets import Dataset, load_dataset
from goca.evaluation import MeanIoU
from goca.files.atomic import write_text
from goca.prompts import PromptAnnotation, annotate, read_captions
from make_scenes import REPOSITORY, SPLITS, write_split
from scipy.stats import t as student
from tqdm import tqdm

HEADS = ("average", "dot-product w/o clamp")
LAYERS = ("vanilla", "dot-product similarity")
RESCALES = ("per-token renorm+", "sum-1 rescaling + per-token renorm+")
PARTS = {  # the rule of each kind: 0 vanilla, 1 ours
    "vanilla": (0, 0, 0),
    "+ head": (1, 0, 0),
    "+ layer": (0, 1, 0),
    "+ rescaling": (0, 0, 1),
    "GoCA": (1, 1, 1),
}
TIMESTEPS = (20, 50, 100, 150, 200, 300, 400, 500, 600, 700)
SPACES = {
    "up, 16 x 16": ("up-level1-repeat{0,1}-vit-block0-self-map",),
    "down and up, 16 x 16": ("down-level0-repeat0-vit-block0-self-map", "up-level1-repeat{0,1}-vit-block0-self-map"),
    "first up, 16 x 16": ("up-level1-repeat0-vit-block0-self-map",),
    "last up, 16 x 16": ("up-level1-repeat1-vit-block0-self-map",),
    "up, 8 x 8": ("up-level0-repeat{0,1}-vit-block0-self-map",),
}
REFERENCES = ("down-level0-repeat0", "up-level0-repeat1", "up-level1-repeat0", "up-level1-repeat1")
ORDERS = (0, 1, 2, 3)
THRESHOLDS = [round(0.05 * i, 2) for i in range(-8, 9)]
PROTOCOLS = {"paper": {"preset": "paper"}, "released": {"preset": "released", "seed": "image"}}  # seeded, both


def open_split(split: str, count: int, work: Path) -> tuple[Dataset, dict[str, str]]:
    """Open the committed test split, or draw another one into `work`; return it with its captions."""
    fields = {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": split, "classes": "classes.json"}
    labels = REPOSITORY / "gpt_output/scenes.json"
    if split != "test":
        folder = work / f"{split}-{count}"
        labels = folder / "labels.json"
        if not labels.exists():
            labels.write_text(json.dumps(write_split(folder, split, SPLITS[split], count)))
        fields["root"] = str(folder)
    return load_dataset(fields), read_captions(labels)[0]


def metric_for(segmenter: Segmenter, classes: int) -> MeanIoU:
    skip = segmenter.protocol.absent_classes == "skip"
    return MeanIoU(classes, "offset", THRESHOLDS, ignore_index=255, absent="skip" if skip else "zero")


def annotated(segmenter: Segmenter, dataset: Dataset, caption: str, present: list[int]) -> PromptAnnotation:
    added = {"add_background": False, "add_missing": True}  # as in configs/dataset/scenes.yaml
    tokenizer = segmenter.extractor.parts["tokenizer"]
    return annotate(caption, dataset.class_names, present, tokenizer, protocol=segmenter.protocol, **added)


def evaluate(
    segmenter: Segmenter, dataset: Dataset, captions: dict[str, str], ids: Iterable[str], seed: int
) -> dict[str, MeanIoU]:
    """Count every part over the images `ids`, with one noise seed."""
    metrics = {part: metric_for(segmenter, len(dataset.class_names)) for part in PARTS}
    for image_id in ids:
        sample = dataset.sample(image_id)
        annotation = annotated(segmenter, dataset, captions[sample.name], sample.present)
        with torch.no_grad():
            drawn = f"{sample.name}#{seed}"  # seeds the noise
            capture = segmenter.capture(sample.image, annotation, image_id=drawn, head_rules=HEADS, layer_rules=LAYERS)
            for part, (head, layer, rescale) in PARTS.items():
                attention = capture.attention_map(HEADS[head], LAYERS[layer])[0]
                scores = segmenter.refine(segmenter.rescale(attention, annotation, RESCALES[rescale]), capture)
                metrics[part].update(scores, sample.label, list(annotation.existent_objects))
    return metrics


def summary(metric: MeanIoU) -> dict[str, float]:
    """mIoU at the best threshold and at 0, and the mean IoU of objects (not background) at the best, in per cent."""
    curve = metric.compute()
    best = max(curve, key=lambda threshold: curve[threshold])
    objects = np.nanmean(metric.per_class()[THRESHOLDS.index(best), 1:])
    return {"best": 100 * curve[best], "threshold": best, "fixed": 100 * curve[0.0], "objects": 100 * float(objects)}


def segmenter_for(model: str, pipeline: str | None, protocol: str, **fields: Any) -> Segmenter:
    return Segmenter.from_pretrained(pipeline, load_config(model, protocol=PROTOCOLS[protocol], **fields))


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval over noise seeds."""
    if len(values) < 2:
        return values[0], float("nan")
    spread = np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1) * spread)


# --- the two studies ---------------------------------------------------------------------------------------------


def study_timesteps(arguments: argparse.Namespace) -> Iterator[dict]:
    dataset, captions = open_split("validation", arguments.count, arguments.work)
    for protocol in PROTOCOLS:
        for t in TIMESTEPS:
            segmenter = segmenter_for(arguments.model, arguments.pipeline, protocol, t=t)
            ids = tqdm(dataset.ids[: arguments.limit], desc=f"{protocol} t={t}")
            metrics = evaluate(segmenter, dataset, captions, ids, seed=0)
            for part, metric in metrics.items():
                yield {"protocol": protocol, "t": t, "split": "validation", "seed": 0, "part": part, **summary(metric)}


def settings() -> Iterator[tuple[str, dict]]:
    """Configs with one setting changed at a time."""
    yield "as configured", {}
    yield from ((f"reference {place}", {"ref_layer": f"{place}-vit-block0-cross-q"}) for place in REFERENCES)
    yield from ((f"space: {name}", {"self_layers": layers}) for name, layers in SPACES.items())
    yield from ((f"affinity order {order}", {"affinity_order": order}) for order in ORDERS)


def study_settings(arguments: argparse.Namespace) -> Iterator[dict]:
    dataset, captions = open_split("validation", arguments.count, arguments.work)
    for name, fields in settings():
        segmenter = segmenter_for(arguments.model, arguments.pipeline, "paper", **fields)
        ids = tqdm(dataset.ids[: arguments.limit], desc=name)
        for part, metric in evaluate(segmenter, dataset, captions, ids, seed=0).items():
            yield {"protocol": "paper", "setting": name, "seed": 0, "part": part, **summary(metric)}


def token_kinds(ids: list[int], annotation: PromptAnnotation, tokenizer: Any) -> dict[str, list[int]]:
    """Token positions by kind."""
    objects = [token for tokens in annotation.existent_objects.values() for token in tokens]
    backgrounds = [token for tokens in annotation.background_objects for token in tokens]
    end = ids.index(tokenizer.eos_token_id)
    commas = [i for i in range(1, end) if i not in objects and i not in backgrounds]
    kinds = {"start": [0], "objects": objects, "backgrounds": backgrounds, "commas": commas}
    return {**kinds, "end and padding": list(range(end, len(ids)))}


def study_layers(arguments: argparse.Namespace) -> Iterator[dict]:
    dataset, captions = open_split("validation", arguments.count, arguments.work)
    for protocol in PROTOCOLS:
        segmenter = segmenter_for(arguments.model, arguments.pipeline, protocol)
        tokenizer, sums = segmenter.extractor.parts["tokenizer"], defaultdict(lambda: defaultdict(float))
        ids = dataset.ids[: arguments.limit]
        for image_id in tqdm(ids, desc=f"layers, {protocol}"):
            sample = dataset.sample(image_id)
            annotation = annotated(segmenter, dataset, captions[sample.name], sample.present)
            capture = segmenter.capture(sample.image, annotation, image_id=sample.name, head_rules=HEADS)
            kinds = token_kinds(tokenizer(annotation.caption, padding="max_length").input_ids, annotation, tokenizer)
            weights = capture.layer_weights(capture.plan.layer_rules[0])[0]
            for block, weight in zip(capture.plan.blocks, weights):
                sums[block]["weight"] += float(weight) / len(ids)
                mean = capture.token_maps[block]["average"][0].mean(0)  # [N]
                for kind, tokens in kinds.items():
                    sums[block][kind] += float(mean[tokens].sum()) / len(ids)
        for block, found in sums.items():
            yield {"protocol": protocol, "block": block, "side": capture.grids[block][0], **found}


def study_parts(arguments: argparse.Namespace) -> Iterator[dict]:
    for split in ("test", "fresh"):
        dataset, captions = open_split(split, arguments.count, arguments.work)
        for protocol in PROTOCOLS:
            segmenter = segmenter_for(arguments.model, arguments.pipeline, protocol)
            for seed in range(arguments.seeds):
                ids = tqdm(dataset.ids[: arguments.limit], desc=f"{split}, {protocol}, noise seed {seed}")
                for part, metric in evaluate(segmenter, dataset, captions, ids, seed).items():
                    entry = {"protocol": protocol, "t": segmenter.config.t, "split": split, "seed": seed, "part": part}
                    yield {**entry, **summary(metric)}


STUDIES = {"timesteps": study_timesteps, "settings": study_settings, "layers": study_layers, "parts": study_parts}


def print_parts(entries: list[dict]) -> None:
    """A markdown table: one row per part; mIoU at the best threshold, at 0, and of objects alone."""
    columns = list(dict.fromkeys((e["split"], e["protocol"]) for e in entries))
    print("| | " + " | ".join(f"{split}, {protocol}" for split, protocol in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for part in PARTS:
        cells = []
        for column in columns:
            mine = [e for e in entries if (e["split"], e["protocol"]) == column and e["part"] == part]
            best, wide = interval([e["best"] for e in mine])
            fixed, objects = (np.mean([e[key] for e in mine]) for key in ("fixed", "objects"))
            cells.append(f"{best:.1f} ± {wide:.1f} ({fixed:.1f}; {objects:.1f})")
        print(f"| {part} | " + " | ".join(cells) + " |")


def print_timesteps(entries: list[dict]) -> None:
    for protocol in PROTOCOLS:
        print(f"| {protocol}, t | " + " | ".join(map(str, TIMESTEPS)) + " |\n|---|" + "---|" * len(TIMESTEPS))
        for part in PARTS:
            found = {e["t"]: e["best"] for e in entries if e["protocol"] == protocol and e["part"] == part}
            print(f"| {part} | " + " | ".join(f"{found[t]:.1f}" for t in TIMESTEPS) + " |")


def print_settings(entries: list[dict]) -> None:
    print("| | " + " | ".join(PARTS) + " |\n|---|" + "---|" * len(PARTS))
    for name in dict.fromkeys(e["setting"] for e in entries):
        found = {e["part"]: e["best"] for e in entries if e["setting"] == name}
        print(f"| {name} | " + " | ".join(f"{found[part]:.1f}" for part in PARTS) + " |")


def print_layers(entries: list[dict]) -> None:
    kinds = [key for key in entries[0] if key not in ("protocol", "block", "side", "weight")]
    print("| layer | weight, paper | weight, released | " + " | ".join(kinds) + " |\n|---|" + "---|" * (2 + len(kinds)))
    weights = {(e["protocol"], e["block"]): e["weight"] for e in entries}
    for e in (e for e in entries if e["protocol"] == "paper"):
        both = (f"{weights[protocol, e['block']]:.2f}" for protocol in PROTOCOLS)
        name = f"{e['block'].removesuffix('-vit-block0')}, {e['side']} x {e['side']}"
        print(f"| {name} | " + " | ".join([*both, *(f"{e[kind]:.2f}" for kind in kinds)]) + " |")


PRINT = {"timesteps": print_timesteps, "settings": print_settings, "layers": print_layers, "parts": print_parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--model", default="mini-sd", help="a config of configs/model")
    parser.add_argument("--pipeline", help="a pipeline folder; by default the config's own")
    parser.add_argument("--count", type=int, default=200, help="images of the validation and fresh splits")
    parser.add_argument("--limit", type=int, help="only the first images of every split")
    parser.add_argument("--seeds", type=int, default=4, help="noise seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="where splits are drawn and results go")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    entries = list(STUDIES[arguments.study](arguments))
    out = arguments.work / f"{arguments.study}.json"
    write_text(out, json.dumps(entries, indent=1))
    PRINT[arguments.study](entries)
    print(f"\nA cell of the table of parts: mIoU at the best threshold (at threshold 0; objects alone). Entries: {out}")


if __name__ == "__main__":
    main()
