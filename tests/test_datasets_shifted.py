"""Labels that count from 0 with 255 for nothing: decided once for a whole data set, never file by file."""

import numpy as np
import pytest
from goca.datasets import VOID, DatasetError
from goca.datasets.ade20k import Ade20kDataset
from goca.datasets.coco import CocoObjectDataset
from goca.datasets.encodings import agreed_encoding
from goca.datasets.folders import LOOKED_AT, FolderDataset
from goca.datasets.memory import cache_folder, remembered
from trees import coco, label, load, picture, start

OBJECTS = [each for each in CocoObjectDataset.encodings if each.name != "panoptic"]
COUNT = 2 * LOOKED_AT + 4


def ade(root, labels):
    for number, values in enumerate(labels):
        picture(root / f"images/validation/ADE_val_{number:08}.jpg")
        label(root / f"annotations/validation/ADE_val_{number:08}.png", values)
    return root


def objects(root, labels):
    coco(root, range(len(labels)))
    for number, values in enumerate(labels):
        label(root / f"annotations/val2017/{number:012}_instanceTrainIds.png", values)
    return root


@pytest.mark.parametrize("telling", [1, COUNT - 2])
def test_one_file_among_many_tells_for_all(tmp_path, telling):
    """The telling file is not among the few that used to be looked at."""
    labels = [[0, 3]] * COUNT
    labels[telling] = [0, 3, 255]
    dataset = load("ade20k", ade(tmp_path, labels))
    assert dataset.encoding.name == "0-149"
    assert start(dataset.sample("ADE_val_00000000"), 2) == [1, 4]
    label(tmp_path / f"annotations/validation/ADE_val_{telling:08}.png", [0, 3, 150])
    assert load("ade20k", tmp_path).encoding.name == "0-150"


def test_a_mixture_is_refused_with_both_files(tmp_path):
    labels = [[0, 3]] * COUNT
    labels[7], labels[50] = [0, 150], [0, 3, 255]
    root = ade(tmp_path, labels)
    said = r"00000007\.png looks like '0-150'; ADE_val_00000050\.png looks like '0-149'.*dataset\.encoding=0-150"
    with pytest.raises(DatasetError, match=said):
        load("ade20k", root).sample("ADE_val_00000000").label  # noqa: B018
    assert start(load("ade20k", root, encoding="0-150").sample("ADE_val_00000000"), 2) == [VOID, 3]


@pytest.mark.parametrize(
    ("labels", "name", "first"),
    [
        ([[0, 5], [0, 79], [255, 0]] * 10, "0-80", [0, 5]),  # background in every file: 255 is void
        ([[255, 5], [255, 0, 79], [255]] * 10, "0-79", [0, 6]),
        ([[255, 5]] * 30 + [[0]], "0-79", [0, 6]),  # one picture is full of people
        ([[0, 5], [0, 80]] * 10, "0-80", [0, 5]),
        ([[0, 5], [0, 90]] * 10, "categories", [0, 5]),
        ([[0, 5]] * 10, "0-80", [0, 5]),  # fits both; the layout promises this one
    ],
)
def test_coco_objects_are_told_apart_by_what_the_background_is(tmp_path, labels, name, first):
    dataset = load("coco-object", objects(tmp_path, labels))
    assert dataset.encoding.name == name and start(dataset.sample(dataset.ids[0]), 2) == first


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 5]] * 10 + [[255, 5]] * 5,  # some files say background with 0, some with 255
        [[0, 80]] + [[0, 5]] * 8 + [[255, 5]] * 2,
        [[0, 80, 12]] * 5 + [[0, 90]] * 5,
    ],
)
def test_objects_of_two_kinds_are_refused(tmp_path, labels):
    with pytest.raises(DatasetError, match=r"are mixed: .* looks like '.*'; .* looks like"):
        load("coco-object", objects(tmp_path, labels)).encoding  # noqa: B018


def test_the_order_of_the_files_does_not_matter():
    rng = np.random.default_rng(3)
    for name in ("0-80", "0-79"):
        shift = 0 if name == "0-80" else -1
        files = [
            (f"{number}.png", {(0 + shift) % 256, *(int(each) + shift for each in rng.integers(1, 81, 3))})
            for number in range(60)
        ]
        for _ in range(5):
            rng.shuffle(files)
            assert agreed_encoding(OBJECTS, files, "objects", "0-80").name == name


def test_it_is_decided_once_and_anew_when_a_file_changes(tmp_path, monkeypatch):
    read, values = [], FolderDataset.values
    monkeypatch.setattr(Ade20kDataset, "values", lambda self, path: read.append(path) or values(self, path))
    root = ade(tmp_path, [[0, 3], [0, 255]])
    for _ in range(3):
        assert load("ade20k", root).encoding.name == "0-149"
    assert len(read) == 2
    label(root / "annotations/validation/ADE_val_00000001.png", [0, 150, 150, 7])
    assert load("ade20k", root).encoding.name == "0-150" and len(read) == 4


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GOCA_CACHE", str(tmp_path / "file"))
    assert [remembered(["a"], [], lambda: "b") for _ in range(2)] == ["b", "b"]
    monkeypatch.delenv("GOCA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "goca"
