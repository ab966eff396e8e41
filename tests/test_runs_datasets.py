"""With a data set's folder and a pipeline's folder, captioner.py and main.py run: all six, in their true layouts."""

import json

import numpy as np
import pytest
from commands import caption, tiny, values
from goca.benchmark import Benchmark
from goca.datasets import load_dataset
from goca.prompts import read_annotations
from trees import cityscapes, coco, context, label, panoptic, picture


def voc_tree(root):
    for image_id in ("2007_000001", "2007_000002"):
        picture(root / f"JPEGImages/{image_id}.jpg")
        label(root / f"SegmentationClass/{image_id}.png", [8, 255, 0])
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{image_id}.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n2007_000002\n")


def context_tree(root):
    for image_id in ("2008_000001", "2008_000002"):
        label(root / f"trainval/{image_id}.mat", [2, 259, 1], np.uint16)
    context(root)


def coco_object_tree(root):
    panoptic(coco(root), {139: [(5, 1), (6, 17), (7, 184)], 285: [(7, 23)]})


def coco_stuff_tree(root):
    for number in (139, 285):
        label(root / f"stuffthingmaps/val2017/{number:012}.png", [12, 181, 120])
    coco(root)


def ade20k_tree(root):
    for number in (1, 2):
        picture(root / f"images/validation/ADE_val_{number:08}.jpg")
        label(root / f"annotations/validation/ADE_val_{number:08}.png", [0, 1, 150])


# the tree, what is said of its labels, a caption, and the pixels of each class in the first image that is visited
SIX = {
    "voc": (voc_tree, None, "cat, grass", {8: 1, 0: 46}),
    "context": (context_tree, "raw ids", "aeroplane, mountain", {1: 1, 2: 1, 0: 46}),
    "coco-object": (coco_object_tree, "panoptic", "(person, shirt), cat", {1: 1, 16: 1, 0: 1}),
    "coco-stuff": (coco_stuff_tree, "from 0", "outdoor, solid", {9: 1, 25: 1, 3: 46}),
    "cityscapes": (lambda root: cityscapes(root, "labelIds", [7, 33, 3]), "label ids", "road, sky", {1: 1, 19: 1}),
    "ade20k": (ade20k_tree, "0 unlabelled", "wall, lamp", {1: 1, 150: 46}),
}


@pytest.fixture
def given(request, goldens, tmp_path):
    name = request.param
    build, *_, words, _ = SIX[name]
    build(tmp_path / "tree")
    place = [f"dataset={name}", f"dataset.root={tmp_path / 'tree'}", f"dataset.labels={tmp_path / 'labels.json'}"]
    dataset = load_dataset(values(*place)["dataset"])
    labels = {dataset.sample(image_id).name: {"caption": words} for image_id in dataset.ids}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    return [*place, *tiny(goldens, 64)]


@pytest.mark.parametrize(("name", "given"), [(name, name) for name in SIX], indirect=["given"])
def test_from_labels_to_results(name, given, tmp_path, capsys):
    _, kind, _, pixels = SIX[name]
    caption(*given, f"annotations={tmp_path / 'annotations.json'}")
    assert "2 annotations" in capsys.readouterr().out
    annotation = next(iter(read_annotations(tmp_path / "annotations.json").values()))
    assert annotation.class_ids and not annotation.lost_classes()
    runs = {"fly": [], "file": [f"annotations={tmp_path / 'annotations.json'}"]}
    on_the_fly, from_file = (
        Benchmark.of(values(*given, *more, "limit=1", f"run_dir={tmp_path / run}")).run() for run, more in runs.items()
    )
    assert on_the_fly["counts"] == from_file["counts"]
    assert on_the_fly["images"] == {"listed": 1, "counted": 1, "skipped": []}
    counted = {each["id"]: each["label_pixels"] for each in on_the_fly["per_class"] if each["label_pixels"]}
    assert counted == pixels
    assert kind in on_the_fly["labels"] if kind else on_the_fly["labels"] is None
    (computed,) = on_the_fly["computed"]
    assert (computed["images"], computed["device"], computed["dtype"]) == (1, "cpu", "float32")
    assert len((tmp_path / "fly" / "evaluation.txt").read_text().splitlines()) == 9
    assert json.loads((tmp_path / "fly" / "results.json").read_text())["config"]["dataset"]["name"] == name
