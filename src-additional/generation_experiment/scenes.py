"""Run the whole experiment on the embedded model: generate, score, write the table of README.md and the contact sheet.

    python3 src-additional/generation_experiment/scenes.py              everything; resumes after an interruption
    python3 src-additional/generation_experiment/scenes.py n=40 write=false

All files are written under `work`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scene_network
import torch
from captions import read_captions
from distances import Array, frechet_distance, kernel_distance, statistics
from features import features_of, images_of, read
from generate import METHODS, generate, parse, run
from generate import Settings as Generation
from goca.drawing.figures import save_figure
from goca.embedded import resolve
from goca.files.atomic import write_text
from goca.files.bounded_json import read_json
from goca.prompts import parse_brackets
from sheet import sheet

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BEGIN, END = "<!-- table: scenes.py writes it -->", "<!-- end -->"
DRAWS = 1000  # bootstrap samples


@dataclass
class Settings:
    """n: images per method;  scales: guidance scales;  write: the table and the sheet into this folder"""

    n: int = 200
    scales: list[float] = field(default_factory=lambda: [5.0])
    steps: int = 20
    batch: int = 8
    work: str = "runs/generation-scenes"
    training: int = 4000
    real: int = 2000
    write: bool = True


@dataclass
class Outcome:
    """Features [n, 64] and detected words [n, 16] of one folder of images."""

    features: Array
    seen: Any


def main(arguments: Sequence[str]) -> None:
    settings = parse(Settings, arguments)
    work = Path(settings.work)
    work.mkdir(parents=True, exist_ok=True)
    captions_file = write_captions(work / "captions.json")
    captions = read_captions(captions_file, settings.n)
    training, real = draw(work, "validation", settings.training), draw(work, "fresh", settings.real)
    network = scene_network.train(training, work / "scene_network.safetensors")
    folders: dict[str, Path] = {}
    for scale in settings.scales:
        for method in METHODS:
            folder = work / f"{method}-{scale:g}"
            generate(
                Generation(
                    model="mini-sd",
                    method=method,
                    captions=str(captions_file),
                    guidance_scale=scale,
                    n=settings.n,
                    steps=settings.steps,
                    batch=settings.batch,
                    out=str(folder),
                )
            )
            folders[folder.name] = folder
    reference = features_of(images_of(real / "JPEGImages"), network, 64, "bicubic", 64)
    unit = reference.std(0) + 1e-6  # each feature in units of its standard deviation among drawn images
    reference /= unit
    images = Path(resolve("goca:scenes")) / "JPEGImages"
    outcomes = {"drawn images": outcome(network, unit, [images / f"{name}.png" for name in captions])}
    for name, folder in folders.items():
        outcomes[name] = outcome(network, unit, [folder / f"{image}.png" for image in captions])
    texts = list(captions.values())
    rows = [row(name, each, outcomes, reference, texts) for name, each in outcomes.items()]
    write_text(work / "scores.json", json.dumps(rows, indent=1) + "\n")
    report = table(rows, settings)
    print(report)
    if settings.write:
        write_report(report)
        save_figure(sheet(folders, captions, 8), HERE / "scenes.png", dpi=110)


def write_captions(file: Path) -> Path:
    """The committed test captions as prompts: the words, without the brackets of the labels' grammar."""
    labels = read_json(REPOSITORY / "gpt_output/scenes.json")
    words = {
        name: [word for group in parse_brackets(entry["caption"]) for word in group] for name, entry in labels.items()
    }
    write_text(file, json.dumps({name: {"caption": ", ".join(each)} for name, each in words.items()}, indent=1))
    return file


def draw(work: Path, split: str, count: int) -> Path:
    """Open a split of the scenes, drawing it if missing."""
    folder = work / f"{split}-{count}"
    if not (folder / "labels.json").exists():
        script = REPOSITORY / "scripts/make_scenes.py"
        subprocess.run([sys.executable, script, "--split", split, "--count", str(count), "--out", folder], check=True)
    return folder


def outcome(network: scene_network.SceneNetwork, unit: Array, files: list[Path]) -> Outcome:
    images = torch.stack([read(file, 64, "bicubic") for file in files])
    features = features_of(files, network, 64, "bicubic", 64) / unit
    return Outcome(features, network.seen(images).numpy())


def row(name: str, own: Outcome, outcomes: dict[str, Outcome], reference: Array, texts: list[str]) -> dict[str, Any]:
    """Make one row of the table; differences are to CFG of the same scale, image by image."""
    real = statistics(reference)
    kid, deviation = kernel_distance(own.features, reference)
    scores = {
        "name": name,
        "images": len(texts),
        "fid": frechet_distance(statistics(own.features), real),
        "kid": kid,
        "kid_deviation": deviation,
    }
    scores |= scene_network.faithfulness(own.seen, texts)
    method, _, scale = name.rpartition("-")
    plain = outcomes.get(f"cfg-{scale}") if method in METHODS and method != "cfg" else None
    return scores if plain is None else scores | bootstrap(own, plain, real, texts)


def bootstrap(own: Outcome, plain: Outcome, real: Any, texts: list[str]) -> dict[str, Any]:
    """95 % bootstrap intervals over images of the differences to CFG."""
    random, differences = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = random.integers(len(texts), size=len(texts))
        some = [texts[place] for place in rows]
        ours, theirs = (scene_network.faithfulness(each.seen[rows], some) for each in (own, plain))
        fids = [frechet_distance(statistics(each.features[rows]), real) for each in (own, plain)]
        differences.append([fids[0] - fids[1], *(ours[key] - theirs[key] for key in ours)])
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    return {f"{key}_difference": [float(a), float(b)] for key, a, b in zip(("fid", "found", "exact"), low, high)}


def table(rows: list[dict[str, Any]], settings: Settings) -> str:
    head = [
        "images of",
        "FID",
        "KID",
        "words found, %",
        "just the words, %",
        "FID - CFG's",
        "found - CFG's",
        "just - CFG's",
    ]
    lines = [head, ["---"] * len(head)]
    for each in rows:
        cells = [
            each["name"],
            f"{each['fid']:.2f}",
            f"{each['kid']:.2f} ± {each['kid_deviation']:.2f}",
            f"{100 * each['found']:.1f}",
            f"{100 * each['exact']:.1f}",
        ]
        for key, factor in (("fid", 1), ("found", 100), ("exact", 100)):
            span = each.get(f"{key}_difference")
            cells.append(f"{factor * span[0]:+.2f} to {factor * span[1]:+.2f}" if span else "")
        lines.append(cells)
    drawn = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return (
        f"{drawn}\n\n{settings.n} images each, {settings.steps} steps, seed 42; {settings.real} drawn images as "
        f"reference; spans are 95 % bootstrap intervals over images."
    )


def write_report(report: str) -> None:
    file = HERE / "README.md"
    text = file.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    write_text(file, f"{text[:start]}\n\n{report}\n\n{text[end:]}")


if __name__ == "__main__":
    run(main)
