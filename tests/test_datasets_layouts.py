"""The readers on small folders in each data set's true layout, with the traps that real ones hold."""

import json
import shutil
import time

import numpy as np
import pytest
from goca.datasets import VOID, DatasetError, DatasetNotFound, SampleError, load_dataset
from goca.datasets.base import class_table
from goca.datasets.context import ContextDataset
from PIL import Image
from scipy.io import savemat

SHAPE = (6, 8)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SHAPE[::-1], "green").save(path)


def label(path, values, dtype=np.uint8):
    """A label file whose pixels begin with these values and go on with the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.full(SHAPE[0] * SHAPE[1], values[-1], dtype)
    flat[: len(values)] = values
    if path.suffix == ".mat":
        savemat(path, {"LabelMap": flat.reshape(SHAPE)}, do_compression=True)
    else:
        Image.fromarray(flat.reshape(SHAPE)).save(path)


def load(name, root, **fields):
    lists = {"context": "Segmentation/train", "cityscapes": "val", "ade20k": "validation"}
    given = {"name": name, "reader": name, "classes": name, "root": str(root), "split": lists.get(name, "val2017")}
    return load_dataset(given | fields)


def start(sample, count):
    return sample.label.ravel()[:count].tolist()


def context(root, ids=("2008_000001", "2008_000002")):
    for image_id in ids:
        picture(root / f"JPEGImages/{image_id}.jpg")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids) + "\n")
    return root


def coco(root, ids=(139, 285)):
    for image_id in ids:
        picture(root / f"val2017/{image_id:012}.jpg")
    return root


def panoptic(root, files):
    """Panoptic PNGs and their JSON: number -> [(segment id, category id)], one pixel each, the rest void."""
    entries = []
    for number, segments in files.items():
        pixels = np.zeros((*SHAPE, 3), np.uint8)
        for at, (segment, _) in enumerate(segments):
            pixels.reshape(-1, 3)[at] = segment % 256, segment // 256 % 256, segment // 65536
        path = root / f"annotations/panoptic_val2017/{number:012}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        info = [{"id": segment, "category_id": category} for segment, category in segments]
        entries.append({"file_name": path.name, "image_id": number, "segments_info": info})
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps({"annotations": entries}))
    return root


def cityscapes(root, kind, values, cities=("frankfurt", "lindau")):
    for city in cities:
        picture(root / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
        label(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_{kind}.png", values)
    return root


def test_context_mat_and_png_say_the_same(tmp_path):
    """Raw ids 2 aeroplane, 259 mountain, 284 person, 1 accordion; the PNG counts the kept ones by the alphabet."""
    root = context(tmp_path)
    for image_id in ("2008_000001", "2008_000002"):
        label(root / f"trainval/{image_id}.mat", [2, 259, 284, 1, 458], np.uint16)
    dataset = load("context", root, reverse=True)
    sample = dataset.sample("2008_000001")
    assert dataset.ids == ["2008_000002", "2008_000001"] and "raw ids" in dataset.found
    assert start(sample, 5) == [1, 2, 15, 0, 41] and sample.present == [1, 2, 15, 41]
    assert [dataset.class_names[i][0] for i in sample.present] == ["aeroplane", "mountain", "person", "wood"]
    shutil.rmtree(root / "trainval")
    for image_id in ("2008_000001", "2008_000002"):
        label(root / f"SegmentationClassContext/{image_id}.png", [1, 35, 37, 0, 59])
    dataset = load("context", root)
    assert start(dataset.sample("2008_000001"), 5) == start(sample, 5) and "order of the raw ids" in dataset.found
    listed = load("context", root, encoding="60-listed").sample("2008_000001")
    assert start(listed, 5) == [1, 35, 37, 0, 59]


def test_the_order_of_context_pngs_is_told_by_the_annotations(tmp_path):
    root = context(tmp_path)
    (root / "Annotations").mkdir()
    for image_id in ("2008_000001", "2008_000002"):
        label(root / f"SegmentationClassContext/{image_id}.png", [15, 13, 0])  # this project's person and table
        objects = "".join(f"<object><name>{name}</name></object>" for name in ("person", "diningtable"))
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    dataset = load("context", root)
    assert dataset.sample("2008_000001").present == [13, 15] and "this project" in dataset.found


def test_context_pngs_with_a_list_of_their_own_order(tmp_path):
    root = context(tmp_path)
    names = [names[0] for names in class_table("context", root)[1:]][::-1]
    (root / "59_labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, start=1)))
    for image_id in ("2008_000001", "2008_000002"):
        label(root / f"59_context_labels/{image_id}.png", [0, 1, 59])
    assert start(load("context", root).sample("2008_000001"), 3) == [0, 59, 1]
    (root / "59_labels.txt").write_text("1: aeroplane\n2: zebra\n")
    with pytest.raises(DatasetError, match=r"does not name the 59 classes.*zebra"):
        load("context", root)


def test_context_files_that_are_no_label_maps(tmp_path):
    root = context(tmp_path, [f"2008_{i:06}" for i in range(7)])
    for i in range(7):
        label(root / f"trainval/2008_{i:06}.mat", [2, 259], np.uint16)
    whole = (root / "trainval/2008_000000.mat").read_bytes()
    (root / "trainval/2008_000000.mat").write_bytes(whole[:-20])
    savemat(root / "trainval/2008_000001.mat", {"Other": np.zeros((2, 2))})
    savemat(root / "trainval/2008_000002.mat", {"LabelMap": np.full(SHAPE, 0.5)})
    label(root / "trainval/2008_000003.mat", [2, 500], np.uint16)
    (root / "trainval/2008_000004.mat").unlink()
    savemat(root / "trainval/2008_000005.mat", {"LabelMap": np.full((3, 3), 2, np.uint16)})
    dataset = load("context", root)
    reasons = ["cannot be read", "no variable LabelMap", "no ids", r"\[500\]", "is missing", "8x6, its label 3x3"]
    for image_id, message in zip(dataset.ids, reasons):
        with pytest.raises(SampleError, match=message):
            dataset.sample(image_id).label  # noqa: B018
    assert dataset.sample("2008_000006").present == [1, 2]


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
    for text, message in [('{"annotations": [', "not COCO's panoptic JSON"), ("[]", "not COCO's panoptic JSON"),
                          ('{"annotations": [{"file_name": "a.png"}]}', "KeyError: 'segments_info'")]:  # fmt: skip
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
    with pytest.raises(DatasetError, match="there are: auto, 0-181, 1-182"):
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
    with pytest.raises(DatasetError, match="have the same name; keep one"):
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
    with pytest.raises(DatasetError, match=r"holds the values \[255\].*0 unlabelled, 1-150"):
        load("ade20k", tmp_path).sample("ADE_val_00000001").label  # noqa: B018


def test_splits_have_names(tmp_path):
    root = context(tmp_path)
    label(root / "trainval/2008_000001.mat", [2], np.uint16)
    (root / "ImageSets/SegmentationContext").mkdir()
    (root / "ImageSets/SegmentationContext/val.txt").write_text("2008_000002\n")
    splits = {"published": "Segmentation/train", "clean": "SegmentationContext/val"}
    assert len(load("context", root, split="published", splits=splits).ids) == 2
    assert load("context", root, split="clean", splits=splits).ids == ["2008_000002"]
    with pytest.raises(DatasetNotFound, match="lists there: Segmentation/train, SegmentationContext/val"):
        load("context", root, split="other", splits=splits)
    for wrong in ("../val", "/etc/list", "a\\b"):
        with pytest.raises(DatasetError, match="is no list"):
            load("context", root, split=wrong)


def test_what_is_missing_shows_the_tree_and_where_it_may_be(tmp_path):
    root = cityscapes(tmp_path / "data" / "city", "labelIds", [7])
    with pytest.raises(DatasetNotFound, match=f"leftImg8bit/val(?s:.*)try dataset.root={root}"):
        load("cityscapes", root.parent)
    shutil.rmtree(root / "gtFine/val/lindau")
    (root / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png").unlink()
    (root / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_polygons.json").write_text("{}")
    with pytest.raises(DatasetNotFound, match="polygons only"):
        load("cityscapes", root)
    coco(tmp_path / "coco")
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/panoptic_val2017.zip").write_bytes(b"")
    with pytest.raises(DatasetNotFound, match="archive inside the archive"):
        load("coco-object", tmp_path / "coco")


def test_a_label_map_becomes_class_ids_in_a_moment(tmp_path):
    """One table look-up: 500x375 raw ids, as PASCAL-Context has them. Measured: under 1 ms; here a generous bound."""
    raw = np.random.default_rng(0).integers(0, 460, (375, 500)).astype(np.uint16)
    convert = ContextDataset.encodings[0]
    best = min(timed(lambda: convert(raw)) for _ in range(20))
    assert best < 0.01


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
