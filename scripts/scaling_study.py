"""Does segmentation grow with generation? Small models at several checkpoints, each measured for both.

    python3 scripts/scaling_study.py                    the models that ship, and the checkpoints in runs/KIND
    python3 scripts/scaling_study.py --train            train the whole family first (hours; it stops and resumes)
    python3 scripts/scaling_study.py --models DIR       checkpoints in DIR/KIND/NAME, NAME from first to late
    python3 scripts/scaling_study.py --sizes quick      a few images of everything, for tests

For each point: how well it draws (Fréchet distance and words found, by a network of the project's own; loss on held-out
images) and how well it segments (mIoU of vanilla, of each part alone and of GoCA, under both protocols, over noise
seeds). The timestep, and each part's threshold, are chosen on the validation split, the same way for all; figures are
of the fresh split. A point that was measured is kept, and measured anew when its weights change. --out receives
results.json, results.csv, tables.md and scaling.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded.mini_family import KINDS
from goca.cli.renamed import Renamed
from goca.drawing.figures import save_figure
from goca.files.atomic import write_arrays, write_text
from scaling.measures import SIZES, WORDS, Sizes, examples, measure_generation
from scaling.points import Point, find_points
from scaling.segmentation import measure_segmentation, measure_switches
from scaling.store import Store, load_arrays
from scaling.summary import (
    Measured,
    correlations,
    gains,
    generation_values,
    segmentation_values,
    switch_effects,
)
from scaling.tables import attention_table, figure, markdown, point_table, write_csv
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src-additional/generation_experiment"))

import scene_network

REAL_FROM = 100_000  # reference images: numbers of the fresh split that nothing else uses


def feature_network(out: Path, worlds: list[str], sizes: Sizes) -> Any:
    """Trained on the validation splits, beyond the images that timesteps are chosen on."""

    def drawn() -> tuple[Tensor, Tensor]:
        pairs = [examples(world, "validation", range(10_000, 10_000 + sizes.network)) for world in worlds]
        images, words = zip(*pairs)
        return torch.cat(images), torch.cat(words)

    return scene_network.fit(drawn, len(WORDS), out / f"network-{'-'.join(worlds)}-{sizes.network}.safetensors")


def reference_features(out: Path, network: Any, worlds: list[str], sizes: Sizes) -> dict[str, np.ndarray]:
    """By world, features [m, 64] of drawn images, and how many of their words the network sees, as a check on it."""
    file = out / f"reference-{'-'.join(worlds)}-{sizes.network}-{sizes.real}.npz"
    if not file.exists():
        found = {}
        for world in worlds:
            images, words = examples(world, "fresh", range(REAL_FROM, REAL_FROM + sizes.real))
            with torch.no_grad():
                found[world] = torch.cat([network(some) for some in images.split(100)]).double().numpy()
                seen = torch.cat([network.seen(some) for some in images.split(100)])
            found[f"{world}/seen"] = np.array([seen[words].float().mean(), (seen == words).all(1).float().mean()])
        write_arrays(file, found)
    return load_arrays(file)


def train_all(models: Path, kinds: list[str], quick: bool) -> None:
    """Every kind, one after the other; what is trained already is only read."""
    script = Path(__file__).with_name("train_mini.py")
    for kind in kinds:
        work = models / kind
        command = [sys.executable, str(script), "--kind", kind, "--work", str(work), "--out", str(work / "late")]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True)


def report(points: list[Point], sizes: Sizes, out: Path) -> None:
    worlds = list(dict.fromkeys(world for point in points for world in point.worlds))
    network = feature_network(out, worlds, sizes)
    reference = reference_features(out, network, worlds, sizes)
    measured: list[Measured] = []
    details, effects, tables = {}, {}, []
    for point in points:
        store = Store.of(point, out)
        generation = measure_generation(point, sizes, network, store)
        segmentation, chosen = measure_segmentation(point, sizes, store)
        details[point.name] = chosen
        values = [*generation_values(generation, reference), *segmentation_values(segmentation)]
        measured += [Measured(point.name, point.kind, point.checkpoint, *value) for value in values]
        for world in point.worlds:
            tables.append(f"## {point.name} on {world}\n\n{markdown(gains(segmentation, world))}\n")
        if point.checkpoint == "late":
            switched = measure_switches(point, chosen, sizes, store)
            effects[point.name] = {world: switch_effects(switched, world) for world in point.worlds}
            for world, effect in effects[point.name].items():
                tables.append(f"## Switches, {point.name} on {world}\n\n{markdown(effect)}\n")
    rows, found = [each.row() for each in measured], correlations(measured)
    checks = {world: dict(zip(("found", "exact"), reference[f"{world}/seen"].tolist())) for world in worlds}
    whole = {
        "sizes": vars(sizes),
        "network sees of drawn images": checks,
        "rows": rows,
        "correlations": found,
        "switches": effects,
        "chosen": details,
    }
    write_text(out / "results.json", json.dumps(whole, indent=1))
    write_csv(out / "results.csv", rows)
    text = [f"## Points on {world}\n\n{markdown(point_table(measured, world))}\n" for world in worlds]
    text += [f"## Attention on {world}\n\n{markdown(attention_table(details, world))}\n" for world in worlds]
    text += [f"## Rank correlations\n\n{markdown(found)}\n"] if found else []
    write_text(out / "tables.md", "\n".join([*text, *tables]))
    save_figure(figure(measured), out / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs"), help="DIR/KIND/CHECKPOINT")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--train", action="store_true", help="train the kinds first")
    parser.add_argument("--sizes", choices=SIZES, default="full", help="how much is measured (default: full)")
    parser.add_argument("--quick", action=Renamed, now="--sizes", nargs=0, const="quick")
    arguments = parser.parse_args()
    if arguments.train:
        train_all(arguments.models, arguments.kinds, arguments.sizes == "quick")
    points = find_points(arguments.models, arguments.kinds)
    if not points:
        parser.error(f"no checkpoints of {', '.join(arguments.kinds)} in {arguments.models}; say --train, or --models")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report(points, SIZES[arguments.sizes], arguments.out)
    print(f"{len(points)} points: {', '.join(point.name for point in points)}; results in {arguments.out}")


if __name__ == "__main__":
    main()
