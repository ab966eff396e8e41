"""Measure time and memory of the method, as ratios within one run.

    python3 scripts/benchmark.py [embedded]     on the embedded model: a table, and JSON with --json FILE
    python3 scripts/benchmark.py denoisers      on full-size denoisers with random weights
    python3 scripts/benchmark.py evaluation     only the evaluation
    python3 scripts/benchmark.py summary        the summary of a run of 5000 images

For the embedded model:

bare         VAE encoding and one forward pass, without reading attention; text states are computed beforehand
method       all of Segmenter(image, annotation): text, encoding, forward pass, aggregation, rescaling, refinement
evaluation   MeanIoU.update of one image, nine thresholds

Bare and method alternate image by image and are measured in processor time, so other load on the machine affects both.
The ratio is printed next to its goal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusion_feature.latents import preprocess, seeded
from goca import Segmenter
from goca.cli.renamed import Renamed
from goca.datasets import load_dataset
from goca.evaluation import MeanIoU
from goca.files.atomic import write_text
from goca.prompts import annotate, read_captions
from make_scenes import REPOSITORY
from tqdm import tqdm

GOAL = 1.25  # method / bare
WARM_UP = 5  # images before the clock starts
OTHERS = {"denoisers": "benchmarks.of_denoisers", "evaluation": "benchmark_evaluation", "summary": "benchmark_summary"}
FIELDS = {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": "test", "classes": "classes.json"}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Processor seconds on all cores, which other processes hardly influence; and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@torch.no_grad()
def embedded(images: int, pipeline: str | None) -> dict[str, float]:
    """Processor seconds per image (medians) of bare, method and evaluation, their ratio, and the peak memory."""
    segmenter, dataset = Segmenter.from_pretrained(pipeline, "mini-sd"), load_dataset(FIELDS)
    captions = read_captions(REPOSITORY / "gpt_output/scenes.json")[0]
    extractor, backbone, t = segmenter.extractor, segmenter.extractor.backbone, segmenter.config.t
    metric = MeanIoU(len(dataset.class_names), thresholds=[t / 10 for t in range(-4, 5)], ignore_index=255)
    seconds: dict[str, list[float]] = {"bare": [], "method": [], "evaluation": []}
    for image_id in tqdm(dataset.ids[: images + WARM_UP], desc="mini-sd"):
        sample = dataset.sample(image_id)
        annotation = annotate(
            captions[sample.name],
            dataset.class_names,
            sample.present,
            extractor.parts["tokenizer"],
            add_background=False,
            add_missing=True,
        )
        states, image, label = backbone.encode_text(extractor.parts, [annotation.caption]), sample.image, sample.label

        def bare() -> torch.Tensor:
            pixels = preprocess(image, extractor.img_size)[None]  # noqa: B023
            latents = backbone.encode_image(extractor.parts, pixels, "mean", None)
            level = backbone.noise_level(extractor.parts["scheduler"], t, "nominal", tuple(latents.shape[-2:]))
            noised = level.signal * latents + level.noise * torch.randn(latents.shape, generator=seeded(0))
            return backbone.denoise(extractor.parts, noised, level, states)  # noqa: B023

        spent = {"bare": timed(bare)[0]}
        spent["method"], found = timed(lambda: segmenter(image, annotation, image_id=image_id))  # noqa: B023
        scores = found.scores  # type: ignore[attr-defined]
        spent["evaluation"] = timed(lambda: metric.update(scores, label, annotation.class_ids))[0]  # noqa: B023
        for name, value in spent.items():
            seconds[name].append(value)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**medians, "method / bare": medians["method"] / medians["bare"], "peak bytes of the process": peak}


def main(argv: Sequence[str]) -> None:
    what, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("embedded", argv)
    if what == "embedded":
        return embedded_command(rest)
    if what not in OTHERS:
        raise SystemExit(f"BenchmarkNotKnown: {what!r}; known: embedded, {', '.join(OTHERS)}")
    importlib.import_module(OTHERS[what]).main(rest)


def embedded_command(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="images to segment (default: 100)")
    parser.add_argument("--pictures", type=int, action=Renamed, now="--images")
    parser.add_argument("--pipeline", help="another folder instead of the embedded model")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args(argv)
    found = {"mini-sd": embedded(arguments.images, arguments.pipeline), "threads": torch.get_num_threads()}
    row = found["mini-sd"]
    print("| | bare | method | method / bare | goal | evaluation | peak memory |\n|---|---|---|---|---|---|---|")
    print(
        f"| mini-sd, {arguments.images} images, {found['threads']} threads | {1e3 * row['bare']:.1f} ms "
        f"| {1e3 * row['method']:.1f} ms | {row['method / bare']:.2f} | {GOAL:.2f} | {1e3 * row['evaluation']:.2f} ms "
        f"| {row['peak bytes of the process'] / 1e9:.2f} GB |"
    )
    if arguments.json:
        write_text(arguments.json, json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
