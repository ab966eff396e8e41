"""The look through a data set's folder: what it counts, what it names, how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from goca.datasets import DatasetConfig
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import check_dataset  # noqa: E402


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "check_dataset.py"), *map(str, arguments)],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


@pytest.fixture
def stuff(tmp_path):
    """Six pictures with labels that count from 0, 255 void."""
    for number in range(1, 7):
        write(tmp_path / f"coco/val2017/{number:012}.jpg", np.zeros((4, 6, 3)))
        write(tmp_path / f"coco/stuffthingmaps/val2017/{number:012}.png", [[0, 12, 120, 120, 255, 255]] * 4)
    return tmp_path / "coco"


def config(root, **fields):
    given = {"name": "coco-stuff", "reader": "coco-stuff", "classes": "coco-stuff", "root": str(root)}
    return DatasetConfig.of(given | {"split": "clean", "splits": {"clean": "val2017"}} | fields)


def test_the_command_says_ready(stuff, tmp_path):
    done = command(tmp_path, "dataset=coco-stuff", f"dataset.root={stuff}", "dataset.images.val2017=6")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "coco-stuff: 6 images in val2017 (split published); expected: 6"
    assert lines[1] == "labels: stuffthingmaps/val2017/*.png: fine labels counted from 0, 255 void"
    assert lines[2] == "classes: 3 of 27 occur; 33.3% of the pixels unlabelled"
    assert lines[-1] == "ready" and list(tmp_path.iterdir()) == [stuff]


def test_the_command_names_what_is_missing(stuff, tmp_path):
    done = command(tmp_path, "dataset=coco-stuff", f"dataset.root={stuff}")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2] == "not ready:" and "6 images instead of 5000" in done.stdout
    done = command(tmp_path, "dataset=cityscapes", f"dataset.root={stuff}")
    assert done.returncode == 1 and done.stdout == ""
    assert "DatasetNotFound" in done.stderr and "leftImg8bit/val/<city>" in done.stderr
    assert done.stderr.endswith("not ready\n") and "Traceback" not in done.stderr


def test_each_kind_of_trouble_is_counted_with_its_fix(stuff, capsys):
    labels = stuff / "stuffthingmaps/val2017"
    (stuff / f"val2017/{1:012}.jpg").unlink()
    (stuff / f"val2017/{2:012}.jpg").write_bytes(b"\xff\xd8 cut off")
    (labels / f"{3:012}.png").unlink()
    write(labels / f"{4:012}.png", [[0, 12]])
    write(labels / f"{5:012}.png", [[0, 11, 1, 1, 1, 1]] * 4)  # counts from 1
    assert not check_dataset.check(config(stuff, encoding="auto"))
    lines = capsys.readouterr().out.splitlines()
    for expected in (
        "1 with no image:",
        "  000000000001",
        "1 with image that cannot be read:",
        "1 with no label:",
        "  000000000003",
        "2 with label that cannot be used:",
        "  000000000004: the image is 6x4, its label 2x1; they must agree",
    ):
        assert expected in lines
    assert any("000000000005.png looks like '1-182', but the other labels look like '0-181'" in line for line in lines)
    assert len(lines[lines.index("not ready:") + 1 :]) == 4


def test_many_are_summed_up_and_a_limit_is_said(stuff, capsys):
    for number in range(7, 30):
        write(stuff / f"stuffthingmaps/val2017/{number:012}.png", [[0, 12]])
    assert not check_dataset.check(config(stuff))
    assert "23 with no image:" in (out := capsys.readouterr().out) and "  and 13 more" in out
    assert check_dataset.check(config(stuff, labels="nowhere.json"), limit=6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready, judging by the first 6 images" and "captions: nowhere.json does not exist" in lines[-2]


def test_voc_annotations_and_values_are_looked_at(tmp_path, capsys):
    for number in range(4):
        write(tmp_path / f"JPEGImages/{number}.jpg", np.zeros((4, 6, 3)))
        write(tmp_path / f"SegmentationClass/{number}.png", [[0, 8, 255, 0, 0, 0]] * 4)
        path = tmp_path / f"Annotations/{number}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("<annotation><object><name>cat</name></object></annotation>")
    (tmp_path / "Annotations/1.xml").unlink()
    write(tmp_path / "SegmentationClass/2.png", [[0, 37, 255, 0, 0, 0]] * 4)
    path = tmp_path / "ImageSets/Segmentation/train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("0\n1\n2\n3\n")
    fields = {"name": "voc", "reader": "voc", "classes": "voc", "root": str(tmp_path), "split": "train"}
    assert not check_dataset.check(DatasetConfig.of(fields | {"images": {"train": [4, 5]}}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "voc: 4 images in train (split train); expected: 4 or 5"
    assert "  1: annotation 1.xml is missing" in lines and "  2: holds [37], which are not classes" in lines
    assert lines[1] == "classes: 1 of 20 occur; 16.7% of the pixels unlabelled"
