"""Runs on a few of the embedded scenes whose scores are drawn at random, without a model."""

import json
import shutil
import zlib
from pathlib import Path

import commands
import numpy as np
from goca.benchmark import Benchmark
from goca.benchmark.prediction import Prediction
from goca.datasets import SampleError
from goca.embedded import resolve
from goca.files.log import sealed_lines

SCENES = Path(resolve("goca:scenes"))
COUNT = 3


class Quick(Benchmark):
    """A run whose scores are drawn by the image and its caption, without a model."""

    def predictor(self, dataset, source, noise, store):
        prompts = source.annotated(lambda offer: f"{offer.caption} {offer.class_ids}")

        def predict(sample):
            try:
                seed = zlib.crc32(sample.image.tobytes() + prompts(sample).encode())
            except SampleError as error:
                return error
            return Prediction(np.random.default_rng(seed).random((3, 8, 8)), [1, 2])

        return lambda cases: [predict(case.sample) for case in cases]


def copy_scenes(folder):
    """A few of the embedded scenes, in a folder that may be changed, and their captions beside it."""
    root = folder / "scenes"
    ids = [f"test_{number:05}" for number in range(COUNT)]
    for image_id in ids:
        for part, ending in (("JPEGImages", ".png"), ("SegmentationClass", ".png"), ("Annotations", ".xml")):
            (root / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(SCENES / part / f"{image_id}{ending}", root / part)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(ids))
    shutil.copy(SCENES / "classes.json", root)
    captions = json.loads((commands.ROOT / "gpt_output/scenes.json").read_text())
    (folder / "labels.json").write_text(json.dumps({f"{each}.png": captions[f"{each}.png"] for each in ids}))
    return root


def benchmark(scenes, *more, name="run", kind=Quick):
    place = scenes.parent
    given = ["model=mini-sd", "dataset=scenes", f"dataset.root={scenes}", f"dataset.labels={place / 'labels.json'}"]
    return kind(**vars(Benchmark.of(commands.values(*given, "device=cpu", f"run_dir={place / name}", *more))))


def lines(folder):
    return [record for record in sealed_lines(folder / "counts.jsonl") if "cells" in record or "skipped" in record]
