"""A segmentation in the hand: masks by name, cut-outs, overlays with a legend, and what a notebook shows."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from goca.drawing.class_colours import BACKGROUND_GREY, OBVIOUS, class_colours
from goca.drawing.legend import SMALLEST, Entry, mask_on, painted, with_legend
from goca.formats import FormatMissing
from goca.segmentation import ClassNotFound, ImageUnknown, Segmentation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def halves(image=PHOTO):
    """Left half cat, right half sky; a background that wins nowhere below a threshold of 1."""
    scores = torch.zeros(3, 4, 6)
    scores[0, :, :3], scores[1, :, 3:] = 1, 1
    size = None if image is None else (image.height, image.width)
    return Segmentation(scores, [1, 2, 0], ["cat", "Sky", "background"], size, image)


def test_a_class_is_its_mask_by_name_or_id():
    segmentation = halves()
    mask = segmentation["cat"]
    assert mask.dtype == torch.bool and mask.shape == (40, 60)
    assert mask[:, :25].all() and not mask[:, 35:].any()
    assert torch.equal(mask, segmentation[1]) and torch.equal(segmentation["sky"], ~mask)
    with pytest.raises(ClassNotFound, match=r"no class 'dog'.*cat, Sky, background"):
        segmentation["dog"]


def test_a_cutout_keeps_the_image_where_the_class_is():
    cutout = halves().cutout("cat")
    assert cutout.mode == "RGBA" and cutout.size == PHOTO.size
    alpha = np.asarray(cutout)[..., 3]
    assert np.array_equal(alpha > 0, halves()["cat"].numpy()) and set(np.unique(alpha)) == {0, 255}
    assert np.array_equal(np.asarray(cutout)[..., :3][alpha > 0], np.asarray(PHOTO)[alpha > 0])
    assert not np.asarray(halves().cutout("cat", threshold=2))[..., 3].any()  # the background wins everywhere
    with pytest.raises(ImageUnknown):
        halves(None).cutout("cat")


def test_a_threshold_reaches_overlay_and_file(tmp_path):
    segmentation = halves()
    segmentation.save(tmp_path / "plain.png")
    segmentation.save(tmp_path / "background.png", threshold=2)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "plain.png")))) == {1, 2}
    assert set(np.unique(np.asarray(Image.open(tmp_path / "background.png")))) == {0}
    assert np.array_equal(np.asarray(segmentation.overlay(threshold=2)), np.asarray(PHOTO))  # background as it was


def test_the_overlay_greys_the_image_under_the_colours():
    grey = np.asarray(PHOTO.convert("L").convert("RGB")).astype(float)
    drawn, colours = np.asarray(halves().overlay(strength=0.5)), halves().colours()
    for side, class_id in ((slice(0, 25), 1), (slice(35, 60), 2)):
        expected = (grey[:, side] + np.array(colours[class_id])) / 2
        assert np.abs(drawn[:, side] - expected).max() <= 1
    assert halves(None).overlay().size == (6, 4)


def test_the_legend_names_classes_with_their_areas_background_last():
    entries = halves().legend()
    assert [(entry.name, round(entry.share, 1)) for entry in entries] == [("cat", 0.5), ("Sky", 0.5)]
    label = torch.zeros(40, 60, dtype=torch.int64)
    label[:, 30:] = 2
    assert [entry.name for entry in halves().legend(label)] == ["cat", "Sky", "background"]
    assert halves().legend(label)[-1].colour is None
    sheet = with_legend(halves().overlay(), entries)
    factor = -(-SMALLEST // 60)
    assert sheet.width >= factor * 60 and sheet.height > factor * 40
    many = [Entry(f"class number {n}", (n, n, n), 0.01) for n in range(60)]
    assert with_legend(PHOTO, many).height > sheet.height and with_legend(PHOTO, []) is PHOTO


def test_colours_suit_the_words_and_differ():
    colours = class_colours({0: "background", 1: "blue sky", 2: "sea", 3: "grass", 4: "water", 5: "cat", 6: "Snow"})
    known = {word: colour for colour, words in OBVIOUS.items() for word in words.split()}
    assert colours[0] == BACKGROUND_GREY and colours[1] == known["sky"] and colours[2] == known["sea"]
    assert colours[3] == known["grass"] and colours[6] == known["snow"]
    assert colours[4] != colours[2] and colours[4][2] == max(colours[4])  # blue like the sea, but another one
    assert min(np.linalg.norm(np.subtract(colours[5], colours[n])) for n in colours if n != 5) >= 90


@given(st.dictionaries(st.integers(0, 254), st.sampled_from([*"abcdef", "sky", "sea", "water", "grass"]), max_size=60))
def test_colours_of_up_to_sixty_classes_are_all_different(names):
    colours = class_colours(names)
    assert colours.keys() == names.keys() and len(set(colours.values())) == len(names)
    assert all(0 <= channel <= 255 for colour in colours.values() for channel in colour)


def test_a_notebook_shows_one_line_and_a_picture():
    segmentation = halves()
    assert repr(segmentation) == "Segmentation(cat, Sky; 40 x 60)"
    assert segmentation._repr_png_().startswith(b"\x89PNG")
    named = Segmentation(segmentation.scores, [1, 2, 0], ["<b>", "sky", "background"], (4, 6))
    assert "<b>" not in named._repr_html_() and "data:image/png;base64," in named._repr_html_()
    many = Segmentation(torch.zeros(13, 2, 2), [*range(1, 13), 0], [f"c{n}" for n in range(12)] + ["background"])
    assert repr(many) == "Segmentation(c0, c1, c2, c3, c4, c5, c6, c7 and 4 more; 2 x 2)"


def test_masks_and_paint_are_resized_to_the_image():
    assert mask_on(PHOTO, np.ones((2, 3), bool)).getextrema()[3] == (255, 255)
    assert painted(PHOTO, np.ones((2, 3), int), {1: (255, 0, 0)}).size == PHOTO.size


def test_coco_annotations_hold_each_class_s_mask():
    from pycocotools import mask as masks

    segmentation = halves()
    annotations = segmentation.to_coco(image_id=7)
    assert [(each["id"], each["category_id"], each["category"]) for each in annotations] == [
        (1, 1, "cat"),
        (2, 2, "Sky"),
    ]
    for each in annotations:
        mask = segmentation[each["category_id"]].numpy()
        assert np.array_equal(masks.decode(each["segmentation"]).astype(bool), mask) and each["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        assert each["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert each["image_id"] == 7 and each["score"] == 1
    assert segmentation.to_coco(threshold=2) == []  # the background wins everywhere


@pytest.fixture
def supervision(monkeypatch):
    """supervision where it is installed, else a class that keeps what it is given."""
    if importlib.util.find_spec("supervision") is None:
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))


def test_detections_hold_masks_boxes_and_names(supervision):
    found = halves().to_detections()
    assert found.class_id.tolist() == [1, 2] and found.data["class_name"].tolist() == ["cat", "Sky"]
    assert found.mask.dtype == bool and np.array_equal(found.mask[0], halves()["cat"].numpy())
    rows, columns = np.nonzero(found.mask[1])
    assert found.xyxy[1].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert found.confidence.tolist() == [1, 1]
    nothing = halves().to_detections(threshold=2)
    assert nothing.mask.shape == (0, 40, 60) and nothing.xyxy.shape == (0, 4)


def test_without_supervision_the_error_names_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(FormatMissing, match="pip install supervision"):
        halves().to_detections()
