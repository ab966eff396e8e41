"""Compare finished runs: a table of mIoU and IoU per class, and a figure of a few images with each prediction.

    python3 scripts/compare_runs.py vanilla=runs/demo/mini-sd-vanilla GoCA=runs/demo/mini-sd --figure scenes.png

All runs must use the same data set. The figure's images are segmented again with each run's configuration and best
threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from goca import Segmenter
from goca.benchmark import Benchmark
from goca.benchmark.tasks import metric_for
from goca.cli.renamed import Renamed
from goca.datasets import class_labels, load_dataset
from goca.drawing.figures import Row, figure, save_figure
from goca.evaluation import MeanIoU
from goca.evaluation.metrics import image_iou
from goca.files.bounded_json import read_json
from goca.method.aggregation import Aggregator
from goca.method.rescaling import rescale
from goca.prompts import PromptAnnotation
from matplotlib.figure import Figure
from torch import Tensor

IMAGES = 5


def read_run(folder: Path) -> dict[str, Any]:
    results = folder / "results.json"
    if not results.exists():
        raise SystemExit(f"{folder} has no results.json; src-main/main.py writes it when a run is finished")
    return read_json(results)


def print_table(runs: dict[str, dict[str, Any]]) -> None:
    """Print a Markdown table in per cent at each run's best threshold: rows mIoU and classes, one column per run."""
    heads = [f"{name} ({run['mIoU']['best']['threshold']:g})" for name, run in runs.items()]
    print("| IoU, % | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(runs))
    columns = list(runs.values())
    rows = [("**mean**", [run["mIoU"]["best"]["mIoU"] for run in columns])]
    rows += [
        (each["name"], [run["per_class"][i]["iou_best"] for run in columns])
        for i, each in enumerate(columns[0]["per_class"])
    ]
    for name, values in rows:
        print(f"| {name} | " + " | ".join("-" if value is None else f"{100 * value:.1f}" for value in values) + " |")
    protocol = columns[0]["protocol"]["preset"] or "mixed"
    print(f"\nprotocol {protocol}; in brackets the best background threshold of the sweep on this split;")
    print(f"{columns[0]['oracle']['classes']}.")


def word_maps(segmenter: Segmenter, capture: Aggregator, annotation: PromptAnnotation) -> list[tuple[str, Tensor]]:
    """The rescaled and refined map of each class and background entity, with its words as the title."""
    tokenizer = segmenter.extractor.parts["tokenizer"]
    ids = tokenizer(annotation.caption, truncation=True).input_ids
    groups = [group for group in (*annotation.existent_objects.values(), *annotation.background_objects) if group]
    attention = capture.attention_map()[0]
    rules = segmenter.config.rescale_method, segmenter.config.token_method
    maps = rescale(attention, groups, annotation.rescaling_token_id, *rules)
    words = [tokenizer.decode([ids[token] for token in group]) for group in groups]
    return list(zip(words, segmenter.refine(maps, capture)))


def draw(runs: dict[str, dict[str, Any]], images: int) -> Figure:
    """Draw images from the whole split with ground truth, each run's labels, and the last run's word maps.

    Below each prediction is its IoU; outlines show where the predictions of the first and the last run differ.
    """
    benchmarks = {name: Benchmark.of(run["config"]) for name, run in runs.items()}
    dataset = load_dataset(next(iter(benchmarks.values())).dataset)
    samples = [dataset.sample(image_id) for image_id in dataset.ids[:: max(1, len(dataset.ids) // images)][:images]]
    rows = [Row(sample.image, sample.label, {}) for sample in samples]
    names = dict(enumerate(class_labels(dataset.class_names)))
    for name, benchmark in benchmarks.items():
        segmenter = Segmenter.from_pretrained(None, benchmark.model, benchmark.device, benchmark.dtype)
        prompts = benchmark.prompts(dataset).annotated(benchmark.annotator(dataset, segmenter.extractor.parts))
        metric = metric_for(dataset, benchmark.dataset, benchmark.protocol)
        threshold = runs[name]["mIoU"]["best"]["threshold"]
        for sample, row in zip(samples, rows):
            annotation = prompts(sample)
            capture = segmenter.capture(sample.image, annotation, image_id=sample.id)
            scores = segmenter.refine(segmenter.rescale(capture.attention_map()[0], annotation), capture)
            segmentation = segmenter.segmentation(scores, annotation, names, sample.image)
            row.predictions[name] = segmentation.label_map(threshold=threshold)
            iou = iou_of(metric, scores, sample.label, list(annotation.existent_objects), threshold)
            row.notes[name] = f"IoU {100 * iou:.1f} %"
            row.words = word_maps(segmenter, capture, annotation)
    names_of_runs = list(runs)
    first, last = names_of_runs[0], names_of_runs[-1]
    if first != last:
        for row in rows:
            row.outlined = row.predictions[first] != row.predictions[last]
        rows[-1].caption = (
            f"Outlined: where {first} and {last} differ. IoU: mean over the classes that the image shows or that were"
            " predicted in it."
        )
    return figure(rows, list(names.values()))


def iou_of(metric: MeanIoU, scores: Tensor, label: np.ndarray, class_ids: Sequence[int], threshold: float) -> float:
    """IoU of one image at a threshold, as in the report."""
    counts = metric.image_counts([metric.update(scores, label, class_ids)], threshold)
    return float(image_iou(counts)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw a figure (png, pdf or svg)")
    parser.add_argument("--picture", type=Path, action=Renamed, now="--figure")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images in the figure")
    arguments = parser.parse_args()
    runs = {name: read_run(Path(folder)) for name, _, folder in (run.partition("=") for run in arguments.runs)}
    print()
    print_table(runs)
    if arguments.figure:
        print(f"\nFigure: {save_figure(draw(runs, arguments.images), arguments.figure)}")


if __name__ == "__main__":
    main()
