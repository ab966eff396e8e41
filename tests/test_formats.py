"""Every format is read back by its own library, or by a reader of its own rules, and holds the same masks."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from goca.datasets import DatasetConfig, load_dataset
from goca.formats import FORMATS, FormatError, Labelled, chosen_formats, from_segmentation
from goca.formats.polygons import outlines
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

CLASSES = {1: "cat", 3: "potted plant", 7: "naïve <b>"}
SIZE = (24, 32)


def item(name="one", split="train"):
    label = np.zeros(SIZE, np.uint8)
    label[2:10, 3:12] = 1
    label[5:7, 6:8] = 0  # a hole
    label[14:20, 20:30] = 3
    label[14:20, 2:6] = 3  # a second region
    label[0, 0:5] = 255
    label[21, 31] = 7  # a single pixel
    pixels = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint8).reshape(*SIZE, 3)
    return Labelled(name, label, Image.fromarray(pixels), split)


def filled(points, size=SIZE):
    """The pixels whose centres a polygon holds, by the even-odd rule."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans()))
@settings(max_examples=200, deadline=None)
def test_outlines_hold_exactly_the_pixels_of_the_mask(mask):
    found = np.zeros(mask.shape, bool)
    for ring in outlines(mask):
        assert ring.min() >= 0 and (ring <= [mask.shape[1], mask.shape[0]]).all()
        found ^= filled(ring, mask.shape)
    assert (found == mask).all()


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_coco_is_read_by_pycocotools(tmp_path, name):
    tools = pytest.importorskip("pycocotools.coco")
    FORMATS[name](tmp_path, [item("one"), item("two"), item("three", "val")], CLASSES)
    read = tools.COCO(str(tmp_path / "annotations/instances_train.json"))
    assert [each["name"] for each in read.loadCats(read.getCatIds())] == list(CLASSES.values())
    assert read.getCatIds() == list(CLASSES)
    label = item().read_label()
    for image in read.loadImgs(read.getImgIds()):
        with Image.open(tmp_path / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        for class_id in (1, 3):
            annotations = read.loadAnns(read.getAnnIds(imgIds=image["id"], catIds=class_id))
            mask = np.any([read.annToMask(each) for each in annotations], axis=0)
            wanted = label == class_id
            assert sum(each["area"] for each in annotations) == wanted.sum()
            if name == "coco":
                assert (mask == wanted).all()
            else:  # COCO's rasteriser counts pixels on the outline its own way
                assert (mask & wanted).sum() / (mask | wanted).sum() > 0.75
    assert len(read.getAnnIds(catIds=3)) == 4  # two regions in two images
    assert len(tools.COCO(str(tmp_path / "annotations/instances_val.json")).getImgIds()) == 1


def test_voc_is_read_by_the_voc_reader(tmp_path):
    FORMATS["voc"](tmp_path, [item()], CLASSES)
    config = DatasetConfig(name="made", reader="voc", root=str(tmp_path), split="train", classes="classes.json")
    sample = load_dataset(config).sample("one")
    assert (np.asarray(sample.label) == item().read_label()).all()
    assert sorted(sample.present) == [1, 3, 7]
    boxes = ElementTree.parse(tmp_path / "Annotations/one.xml").findall("object/bndbox")
    assert [int(side.text) for side in boxes[0]] == [4, 3, 12, 10]


def test_yolo_polygons_give_the_masks_again(tmp_path):
    FORMATS["yolo"](tmp_path, [item()], CLASSES)
    found = np.zeros(SIZE, np.uint8)
    for line in (tmp_path / "labels/train/one.txt").read_text().splitlines():
        number, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        assert points.min() >= 0 and points.max() <= 1
        found[filled(points * [SIZE[1], SIZE[0]])] = sorted(CLASSES)[int(number)]
    label = item().read_label()
    assert (found == np.where(label == 255, 0, label)).all()


def test_yolo_is_read_by_supervision(tmp_path):
    sv = pytest.importorskip("supervision")
    FORMATS["yolo"](tmp_path, [item()], CLASSES)
    read = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images/train"), str(tmp_path / "labels/train"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert read.classes == list(CLASSES.values())
    _, _, found = read[0]
    assert sorted(found.class_id.tolist()) == [0, 1, 1, 2]


def test_labelme_shapes_give_the_masks_again(tmp_path):
    FORMATS["labelme"](tmp_path, [item()], CLASSES)
    content = json.loads((tmp_path / "one.json").read_text())
    assert (tmp_path / content["imagePath"]).is_file()
    assert (content["imageHeight"], content["imageWidth"]) == SIZE
    drawn = {name: Image.new("1", SIZE[::-1]) for name in CLASSES.values()}
    for shape in content["shapes"]:
        assert shape["shape_type"] == "polygon"
        ImageDraw.Draw(drawn[shape["label"]]).polygon([tuple(p) for p in shape["points"]], fill=1)
    mask, wanted = np.asarray(drawn["cat"]), item().read_label() == 1
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.7
    found = np.zeros(SIZE, bool)
    for shape in content["shapes"]:
        if shape["label"] == "cat":
            found ^= filled(np.array(shape["points"]))
    assert (found == wanted).all()


def test_masks_and_cutouts(tmp_path):
    for name in ("masks", "cutouts"):
        FORMATS[name](tmp_path / name, [item()], CLASSES)
        assert json.loads((tmp_path / name / "classes.json").read_text()) == {str(k): v for k, v in CLASSES.items()}
    with Image.open(tmp_path / "masks/one.png") as image:
        assert image.mode == "L" and (np.asarray(image) == item().read_label()).all()
    with Image.open(tmp_path / "cutouts/one-1.png") as image:
        pixels = np.asarray(image)
    assert ((pixels[..., 3] == 255) == (item().read_label() == 1)).all()
    assert (pixels[..., :3] == np.asarray(item().image)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_twice_the_same_files(tmp_path, name):
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in FORMATS[name](tmp_path / "a", [item()], CLASSES)}
    again = {p.relative_to(tmp_path / "b"): p.read_bytes() for p in FORMATS[name](tmp_path / "b", [item()], CLASSES)}
    assert first == again and first
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "..", "a\\b", "a\0b", "/etc/x", "c:x"])
def test_names_cannot_leave_the_folder(name):
    with pytest.raises(FormatError, match="is not a file name"):
        item(name)
    with pytest.raises(FormatError, match="is not a file name"):
        item("fine", split=name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_class_without_a_name_is_refused(tmp_path, name):
    with pytest.raises(FormatError, match="class 7 has no name"):
        FORMATS[name](tmp_path, [item()], {1: "cat", 3: "plant"})


def test_unknown_formats_are_named_with_the_known_ones():
    assert chosen_formats("voc, COCO,voc") == ["voc", "coco"]
    with pytest.raises(FormatError, match="unknown format 'pascal'; expected some of: coco, "):
        chosen_formats("voc,pascal")


def test_one_segmentation(tmp_path):
    import torch
    from goca import Segmentation

    scores = torch.zeros(2, 4, 4)
    scores[0, :2], scores[1, 2:] = 1, 1
    found = Segmentation(scores, [5, 0], ["cat", "background"], (8, 8), Image.new("RGB", (8, 8)))
    own, classes = from_segmentation(found, "photo")
    assert classes == {5: "cat"}
    FORMATS["masks"](tmp_path, [own], classes)
    with Image.open(tmp_path / "photo.png") as image:
        assert (np.asarray(image) == found.label_map().numpy()).all()


def test_a_turned_photo_is_written_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "plain.jpg")
    turned = Labelled("turned", np.zeros((8, 4), np.uint8), tmp_path / "turned.jpg").copy_image(tmp_path / "out")
    plain = Labelled("plain", np.zeros((4, 8), np.uint8), tmp_path / "plain.jpg").copy_image(tmp_path / "out")
    with Image.open(turned) as image:
        assert image.size == (4, 8)
    assert plain.read_bytes() == (tmp_path / "plain.jpg").read_bytes()
