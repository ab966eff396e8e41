"""Measure layer weights from some rows of the reference affinity (`rows`): error of the weights, change of mIoU.

    python3 scripts/study_rows.py --rows 64 128 --images 200      on the embedded model and its test scenes

All settings share each image's forward pass, so they differ only in their rows.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import torch
from benchmark import FIELDS
from diffusion_feature.tap import ConsumerGroup
from goca import Segmenter
from goca.datasets import load_dataset
from goca.evaluation import MeanIoU
from goca.method.aggregation import Aggregator
from goca.prompts import annotate, read_captions
from goca.requests import Request, load_images
from make_scenes import REPOSITORY
from tqdm import tqdm

THRESHOLDS = [t / 10 for t in range(-4, 5)]


@torch.no_grad()
def study(rows: Sequence[int], images: int) -> list[tuple[str, float, float, float, float]]:
    """Per setting: its name, mean and largest sum over layers of |w - w exact|, mIoU at its best threshold and at 0."""
    model = Segmenter.from_pretrained(None, "mini-sd")
    plans = {"all": model.plan()} | {str(count): dataclasses.replace(model.plan(), rows=count) for count in rows}
    dataset, captions = load_dataset(FIELDS), read_captions(REPOSITORY / "gpt_output/scenes.json")[0]
    names, tokenizer = dataset.class_names, model.extractor.parts["tokenizer"]
    metrics = {name: MeanIoU(len(names), "offset", THRESHOLDS, ignore_index=255) for name in plans}
    errors: dict[str, list[float]] = {name: [] for name in plans}
    for image_id in tqdm(dataset.ids[:images]):
        sample = dataset.sample(image_id)
        caption, options = captions[sample.name], {"add_background": False, "add_missing": True}
        annotation = annotate(caption, names, sample.present, tokenizer, **options)
        summaries = {name: Aggregator(plan) for name, plan in plans.items()}
        request = Request(sample.image, annotation, image_id=image_id)
        model.forward(load_images([request]), ConsumerGroup(list(summaries.values())))
        exact = summaries["all"].layer_weights(model.config.layer_method)[0]
        for name, summary in summaries.items():
            weights = summary.layer_weights(model.config.layer_method)[0]
            errors[name].append(float((weights - exact).abs().sum()))
            maps = model.rescale(summary.attention_map()[0], annotation)
            scores = model.refine(maps, summary, 0, sample.image)
            metrics[name].update(scores, sample.label, annotation.class_ids)
    found = {name: metric.compute() for name, metric in metrics.items()}
    return [
        (name, sum(errors[name]) / len(errors[name]), max(errors[name]), max(found[name].values()), found[name][0.0])
        for name in plans
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    print("| rows | error of the weights, mean | largest | mIoU, best threshold | mIoU at 0 |\n|---|---|---|---|---|")
    for name, mean, largest, best, fixed in study(arguments.rows, arguments.images):
        print(f"| {name} | {mean:.4f} | {largest:.4f} | {100 * best:.2f} | {100 * fixed:.2f} |")


if __name__ == "__main__":
    main()
