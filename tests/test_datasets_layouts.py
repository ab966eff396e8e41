"""The readers on small folders in each data set's true layout, with the traps that real ones hold."""

import json
import shutil

import numpy as np
import pytest
from goca.datasets import VOID, DatasetError, DatasetNotFound, SampleError
from PIL import Image
from trees import cityscapes, coco, label, load, panoptic, picture, start


def test_coco_panoptic_ids_are_looked_up_in_the_json(tmp_path):
    big = 200 + 256 * 17 + 65536 * 99
    root = panoptic(coco(tmp_path), {139: [(3226956, 1), (big, 90), (5, 184)], 285: [(7, 23)]})
    dataset = load("coco-object", root)
    sample = dataset.sample("000000000139")
    assert dataset.ids == ["000000000139", "000000000285"] and sample.name == "000000000139.jpg"
    assert start(sample, 4) == [1, 80, 0, VOID] and sample.present == [1, 80]  # stuff is background
    assert dataset.sample("000000000285").present == [22] and "panoptic" in dataset.found


def test_coco_panoptic_trouble_is_named(tmp_path):
    root = panoptic(coco(tmp_path), {139: [(5, 1)], 285: [(7, 23)]})
    path = root / "annotations/panoptic_val2017.json"
    entries = json.loads(path.read_text())["annotations"]
    entries[0]["segments_info"] = [{"id": 6, "category_id": 1}]
    path.write_text(json.dumps({"annotations": entries[:1]}))
    dataset = load("coco-object", root)
    with pytest.raises(DatasetError, match="has no labels"):
        load("coco-object", root, encoding="0-80")
    for image_id, message in [("000000000139", "does not list for it"), ("000000000285", "not listed in")]:
        with pytest.raises(SampleError, match=message):
            dataset.sample(image_id).label  # noqa: B018
    for text, message in [
        ('{"annotations": [', "not COCO's panoptic JSON"),
        ("[]", "not COCO's panoptic JSON"),
        ('{"annotations": [{"file_name": "a.png"}]}', "KeyError: 'segments_info'"),
    ]:
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            load("coco-object", root).sample("000000000139").label  # noqa: B018
    path.write_text(json.dumps({"annotations": entries[:1] * 2}))
    with pytest.raises(DatasetError, match="more than once"):
        load("coco-object", root).sample("000000000139").label  # noqa: B018
    path.unlink()
    with pytest.raises(DatasetNotFound, match="is missing; it comes in the same archive"):
        load("coco-object", root).sample("000000000139").label  # noqa: B018


@pytest.mark.parametrize(("folder", "ending"), [("annotations/val2017", "_instanceTrainIds"), ("instance_val2017", "")])
def test_coco_instance_pngs_hold_classes_or_categories(tmp_path, folder, ending):
    root = coco(tmp_path)
    for number, values in [(139, [0, 1, 80, 255]), (285, [12, 0])]:
        label(root / f"{folder}/{number:012}{ending}.png", values)
    dataset = load("coco-object", root)
    assert start(dataset.sample("000000000139"), 4) == [0, 1, 80, VOID] and "1-80" in dataset.found
    for number, values in [(139, [0, 1, 90, 255]), (285, [17, 0])]:
        label(root / f"{folder}/{number:012}{ending}.png", values)
    dataset = load("coco-object", root)
    assert start(dataset.sample("000000000139"), 4) == [0, 1, 80, VOID] and "category ids" in dataset.found
    assert dataset.sample("000000000285").present == [16]


@pytest.mark.parametrize("folder", ["stuffthingmaps/val2017", "annotations/val2017"])
def test_coco_stuff_counted_from_0_and_from_1(tmp_path, folder):
    found = []
    for shift in (0, 1):
        root = coco(tmp_path / str(shift))
        for number, values in [(139, [0, 12, 13, 181, 120]), (285, [91, 161])]:
            label(root / f"{folder}/{number:012}.png", np.array(values) + shift)
        (root / folder / "._000000000139.png").write_bytes(b"left by an archive")
        label(root / folder / "000000000139_labelTrainIds.png", [3])
        dataset = load("coco-stuff", root)
        assert dataset.ids == ["000000000139", "000000000285"]
        found.append((start(dataset.sample("000000000139"), 5), dataset.sample("000000000285").present, dataset.found))
    assert found[0][:2] == found[1][:2] == ([10, 9, 9, 25, 3], [18, 25])
    assert "from 0" in found[0][2] and "from 1" in found[1][2]


def test_coco_stuff_that_cannot_be_told_can_be_said(tmp_path):
    root = coco(tmp_path)
    for number in (139, 285):
        label(root / f"stuffthingmaps/val2017/{number:012}.png", [1, 2])
    with pytest.raises(DatasetError, match=r"set dataset\.encoding"):
        load("coco-stuff", root).sample("000000000139").label  # noqa: B018
    assert start(load("coco-stuff", root, encoding="1-182").sample("000000000139"), 2) == [10, 12]
    with pytest.raises(DatasetError, match="expected one of: auto, 0-181, 1-182"):
        load("coco-stuff", root, encoding="1-183")


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("labelIds", [7, 33, 0, 3], "label ids"),
        ("labelTrainIds", [0, 18, 255, 255], "train ids"),
        ("labelIds", [0, 18, 255, 255], "train ids"),  # a name that does not tell the truth
        ("labelTrainIds", [7, 33, 0, 3], "label ids"),
        ("trainIds", [0, 18, 255], "train ids"),
    ],
)
def test_cityscapes_ids_are_found_out_by_looking(tmp_path, kind, values, found):
    dataset = load("cityscapes", cityscapes(tmp_path, kind, values))
    sample = dataset.sample(dataset.ids[0])
    assert dataset.ids == ["frankfurt_000000_000019", "lindau_000000_000019"] and found in dataset.found
    assert start(sample, 3) == [1, 19, VOID] and sample.present == [1, 19]
    assert sample.name == "frankfurt_000000_000019_leftImg8bit.png"


def test_cityscapes_names_decide_where_values_do_not(tmp_path):
    assert "label ids" in load("cityscapes", cityscapes(tmp_path / "a", "labelIds", [7, 8])).found
    assert "train ids" in load("cityscapes", cityscapes(tmp_path / "b", "labelTrainIds", [7, 8])).found
    (tmp_path / "b/gtFine/val/lindau/lindau_000000_000019_gtFine_labelTrainIds.png").unlink()
    sample = load("cityscapes", tmp_path / "b").sample("lindau_000000_000019")
    with pytest.raises(SampleError, match=r"000019_gtFine_labelTrainIds\.png is missing"):
        sample.label  # noqa: B018


def test_two_files_of_one_name_are_refused(tmp_path):
    root = cityscapes(tmp_path, "labelIds", [7, 33])
    shutil.copytree(root / "leftImg8bit/val/lindau", root / "leftImg8bit/val/copy")
    with pytest.raises(DatasetError, match="have the same name; remove one"):
        load("cityscapes", root)


def test_ade20k(tmp_path):
    for number in (1, 2):
        picture(tmp_path / f"images/validation/ADE_val_{number:08}.jpg")
        label(tmp_path / f"annotations/validation/ADE_val_{number:08}.png", [0, 1, 150])
    dataset = load("ade20k", tmp_path)
    sample = dataset.sample("ADE_val_00000001")
    assert start(sample, 3) == [VOID, 1, 150] and sample.present == [1, 150]
    assert dataset.class_names[2] == ["building", "buildingsedifice"]
    for number in (1, 2):
        label(tmp_path / f"annotations/validation/ADE_val_{number:08}.png", [0, 1, 149, 255])
    dataset = load("ade20k", tmp_path)
    assert start(dataset.sample("ADE_val_00000001"), 4) == [1, 2, 150, VOID] and "255 unlabelled" in dataset.found
    with pytest.raises(SampleError, match=r"holds the values \[255\], which do not occur in labels of the kind"):
        load("ade20k", tmp_path, encoding="0-150").sample("ADE_val_00000001").label  # noqa: B018


def test_what_is_missing_shows_the_tree_and_where_it_may_be(tmp_path):
    root = cityscapes(tmp_path / "data" / "city", "labelIds", [7])
    with pytest.raises(DatasetNotFound, match=f"leftImg8bit/val(?s:.*)try dataset.root={root}"):
        load("cityscapes", root.parent)
    shutil.rmtree(root / "gtFine/val/lindau")
    (root / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png").unlink()
    (root / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_polygons.json").write_text("{}")
    with pytest.raises(DatasetNotFound, match="only polygons"):
        load("cityscapes", root)
    coco(tmp_path / "coco")
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/panoptic_val2017.zip").write_bytes(b"")
    with pytest.raises(DatasetNotFound, match="archive holds another archive"):
        load("coco-object", tmp_path / "coco")


def test_a_label_of_another_kind_among_many_is_skipped(tmp_path):
    root = coco(tmp_path, range(1, 7))
    for number in range(1, 7):
        label(root / f"stuffthingmaps/val2017/{number:012}.png", [11, 1] if number == 4 else [12, 255])
    dataset = load("coco-stuff", root)
    assert dataset.encoding.name == "0-181" and dataset.sample("000000000001").present == [9]
    with pytest.raises(SampleError, match=r"000000000004\.png looks like '1-182', but the other labels"):
        dataset.sample("000000000004").label  # noqa: B018
    said = load("coco-stuff", root, encoding="0-181")
    assert start(said.sample("000000000004"), 2) == [9, 12]  # whoever says so is believed


def test_coloured_labels_are_no_labels(tmp_path):
    root = coco(tmp_path)
    for number in (139, 285):
        path = root / f"stuffthingmaps/val2017/{number:012}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(path)
    with pytest.raises(DatasetError, match=r"none of the labels .* mode RGB; expected one id per pixel"):
        load("coco-stuff", root).sample("000000000139").label  # noqa: B018
