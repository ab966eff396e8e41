"""Readers on small folders in the real layout; what is missing or odd is named."""

import json
import shutil

import numpy as np
import pytest
from goca.datasets import DatasetError, DatasetNotFound, SampleError, class_label, load_dataset
from goca.drawing.palettes import voc_palette
from PIL import Image

CONFIG = {"name": "voc", "reader": "voc", "split": "train", "reverse": True, "classes": "voc"}


@pytest.fixture
def voc(tmp_path):
    """Three pictures in VOC's layout; the second is a .png."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    pictures = [(".jpg", ["cat"]), (".png", ["person", "dog", "person"]), (".jpg", [])]
    for number, (suffix, objects) in enumerate(pictures):
        Image.new("RGB", (8, 6), "green").save(root / "JPEGImages" / f"img{number}{suffix}")
        label = np.full((6, 8), 255, np.uint8)
        label[1:4, 1:4] = number
        Image.fromarray(label).save(root / "SegmentationClass" / f"img{number}.png")
        xml = "".join(f"<object><name>{name}</name><part><name>head</name></part></object>" for name in objects)
        (root / "Annotations" / f"img{number}.xml").write_text(f"<annotation>{xml}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("img0\nimg1\n\nimg2\n")
    return root


def test_voc_is_read_in_the_published_order(voc):
    dataset = load_dataset(CONFIG | {"root": str(voc)})
    assert dataset.ids == ["img2", "img1", "img0"] and len(dataset.class_names) == 21
    samples = [dataset.sample(image_id) for image_id in dataset.ids]
    assert [sample.present for sample in samples] == [[], [12, 15], [8]]
    assert [sample.name for sample in samples] == ["img2.jpg", "img1.png", "img0.jpg"]
    assert samples[0].label.shape == (6, 8) and set(np.unique(samples[0].label)) == {2, 255}
    assert samples[0].image.size == (8, 6)
    assert load_dataset(CONFIG | {"root": str(voc), "reverse": False}).ids == ["img0", "img1", "img2"]


def test_lists_as_other_systems_write_them(voc):
    """CRLF and image endings are read; UTF-16, and flags behind the ids, are named."""
    file = voc / "ImageSets/Segmentation/train.txt"
    file.write_bytes(b"img0\r\nimg1\r\n\r\nimg2\r\n")
    assert load_dataset(CONFIG | {"root": str(voc), "reverse": False}).ids == ["img0", "img1", "img2"]
    file.write_text("img0.jpg\nimg1.png\nimg2\n")
    assert load_dataset(CONFIG | {"root": str(voc), "reverse": False}).ids == ["img0", "img1", "img2"]
    file.write_text("img0 -1\nimg1  1\n")
    with pytest.raises(DatasetError, match="lists 'img0 -1', a flag after the id"):
        load_dataset(CONFIG | {"root": str(voc)})
    file.write_bytes("img0\r\nimg1\r\n".encode("utf-16"))
    with pytest.raises(DatasetError, match="is not text"):
        load_dataset(CONFIG | {"root": str(voc)})


def test_palette_images_keep_their_class_ids(voc):
    label = Image.fromarray(np.array([[0, 15], [255, 3]], np.uint8), mode="P")
    label.putpalette([7, 8, 9] * 256)
    label.save(voc / "SegmentationClass/img0.png")
    Image.new("RGB", (2, 2)).save(voc / "JPEGImages/img0.jpg")
    assert load_dataset(CONFIG | {"root": str(voc)}).sample("img0").label.tolist() == [[0, 15], [255, 3]]


def test_the_embedded_scenes_are_read_by_the_same_reader():
    fields = {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": "test", "classes": "classes.json"}
    dataset = load_dataset(fields)
    sample = dataset.sample(dataset.ids[0])
    assert len(dataset.ids) == 200 and sample.label.shape == sample.image.size[::-1]
    assert set(np.unique(sample.label)) - {0, 255} <= set(sample.present)
    assert class_label(dataset.class_names, 0) == "background"
    assert class_label(dataset.class_names, 1) == dataset.class_names[1][0]


@pytest.mark.parametrize("part", ["JPEGImages", "SegmentationClass", "Annotations", "ImageSets"])
def test_a_missing_folder_names_the_expected_tree(voc, part):
    shutil.rmtree(voc / part)
    with pytest.raises(DatasetNotFound, match=rf"has no {part}(?s:.*)ImageSets/Segmentation/<split>\.txt"):
        load_dataset(CONFIG | {"root": str(voc)})


def test_the_parent_folder_is_recognised(voc):
    with pytest.raises(DatasetNotFound, match=f"try dataset.root={voc}"):
        load_dataset(CONFIG | {"root": str(voc.parents[1])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "dataset.root is not set"),
        ({"root": "no/such/folder"}, "is not a folder(?s:.*)JPEGImages"),
        ({"root": "goca:nothing"}, "expected one of: .*scenes"),
        ({"split": "trainval"}, "splits there: train"),
        ({"reader": "coco"}, "expected one of: voc"),
        ({"classes": "nothing"}, "unknown table; expected .*voc"),
        ({"colour": 1}, "no field colour; fields: name"),
        ({"name": None}, "dataset.name is not set"),
    ],
)
def test_what_is_configured_wrongly_is_named(voc, change, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(CONFIG | {"root": str(voc)} | change)


@pytest.mark.parametrize(
    ("lines", "message"),
    [("img0\n../img1\n", "bare ids"), ("img0\nimg1\nimg0\n", "'img0' more than once"), ("\n", "is empty")],
)
def test_odd_lists_are_refused(voc, lines, message):
    (voc / "ImageSets/Segmentation/train.txt").write_text(lines)
    with pytest.raises(DatasetError, match=message):
        load_dataset(CONFIG | {"root": str(voc)})


def test_what_cannot_be_used_says_why(voc):
    dataset = load_dataset(CONFIG | {"root": str(voc)})
    (voc / "JPEGImages/img0.jpg").write_bytes(b"\xff\xd8 cut off")
    (voc / "SegmentationClass/img1.png").unlink()
    Image.new("L", (3, 3)).save(voc / "SegmentationClass/img2.png")
    for image_id, message in [
        ("img0", "image img0.jpg cannot be read"),
        ("img1", "label img1.png is missing"),
        ("img2", "the image is 8x6, its label 3x3"),
    ]:
        with pytest.raises(SampleError, match=message):
            dataset.sample(image_id).label  # noqa: B018
    Image.new("RGB", (8, 6), (1, 2, 3)).save(voc / "SegmentationClass/img2.png")
    with pytest.raises(SampleError, match="mode RGB"):
        dataset.sample("img2").label  # noqa: B018
    (voc / "Annotations/img1.xml").write_text("<annotation><object><name>unicorn</name></object></annotation>")
    (voc / "Annotations/img2.xml").write_text("<annotation>")
    (voc / "Annotations/img0.xml").unlink()
    for image_id, message in [("img0", "missing"), ("img1", "'unicorn', which is no"), ("img2", "cannot be read")]:
        with pytest.raises(SampleError, match=message):
            dataset.sample(image_id)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_labels_in_voc_s_colours_are_turned_into_ids_with_a_note(voc, mode):
    dataset, path = load_dataset(CONFIG | {"root": str(voc)}), voc / "SegmentationClass/img2.png"
    expected = dataset.sample("img2").label
    expected[0, :3] = 15, 20, 255
    paletted = Image.fromarray(expected).convert("P")
    paletted.putpalette(voc_palette().tobytes())
    paletted.convert(mode).save(path)
    sample = dataset.sample("img2")
    assert np.array_equal(sample.label, expected) and sample.label.dtype == np.uint8
    (note,) = sample.notes
    assert "img2.png is in PASCAL VOC's colours" in note
    assert dataset.sample("img0").notes == []
    wrong = np.array(Image.open(path))
    for colour in (voc_palette()[22], (1, 0, 0)):  # the colour of class 22, which is none here; a colour of none
        wrong[0, 0, :3] = colour
        Image.fromarray(wrong).save(path)
        with pytest.raises(SampleError, match="mode RGB and colours other"):
            dataset.sample("img2").label  # noqa: B018


@pytest.mark.parametrize("table", ["{", "{}", "[[]]", '[[], "cat"]', "[[], [1]]"])
def test_class_tables_are_checked(voc, table):
    (voc / "classes.json").write_text(table)
    with pytest.raises(DatasetError, match=r"classes\.json"):
        load_dataset(CONFIG | {"root": str(voc), "classes": "classes.json"})


def test_a_class_table_of_ones_own(voc):
    (voc / "classes.json").write_text(json.dumps([[], ["person"], ["cat"], ["dog"]]))
    dataset = load_dataset(CONFIG | {"root": str(voc), "classes": "classes.json"})
    assert dataset.sample("img1").present == [1, 3]
