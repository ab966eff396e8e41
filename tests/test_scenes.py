"""The embedded pictures: the same on every machine, in VOC's layout, with labels that fit them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import make_scenes  # noqa: E402
from embedded.backgrounds import LOWER, UPPER  # noqa: E402
from embedded.pen import SIZE  # noqa: E402
from embedded.scene_drawing import OBJECTS, PARTS, draw_scene, write_caption  # noqa: E402

EMBEDDED = REPOSITORY / "src-main/goca/embedded/scenes"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**6))
def test_a_scene_is_what_its_words_say(seed, index):
    scene = draw_scene(seed, index)
    assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
    assert {OBJECTS[k - 1] for k in np.unique(scene.label) if k} == set(scene.objects)
    assert 1 <= len(scene.objects) <= 3
    assert scene.backgrounds[0] in UPPER and scene.backgrounds[1] in LOWER
    again = draw_scene(seed, index)
    assert (again.image == scene.image).all() and (again.label == scene.label).all()


def test_caption_names_everything_once_and_parts_only_in_brackets():
    for index in range(200):
        scene = draw_scene(5, index)
        caption = write_caption(scene, 5, index, brackets=0.5)
        words = caption.replace("(", "").replace(")", "").split(", ")
        assert sorted(w for w in words if w in OBJECTS) == sorted(scene.objects)
        assert set(scene.backgrounds) <= set(words)
        parts = [w for w in words if w not in OBJECTS and w not in scene.backgrounds]
        assert all(any(p in PARTS.get(o, ()) for o in scene.objects) for p in parts)
        assert ("(" in caption) == bool(parts)


@pytest.mark.parametrize("index", range(0, 200, 9))
def test_the_committed_test_split_is_redrawn_pixel_by_pixel(index):
    scene, name = draw_scene(make_scenes.SPLITS["test"], index), f"test_{index:05d}"
    assert (np.asarray(Image.open(EMBEDDED / f"JPEGImages/{name}.png")) == scene.image).all()
    label = Image.open(EMBEDDED / f"SegmentationClass/{name}.png")
    assert label.mode == "P" and (np.asarray(label) == scene.label).all()
    captions = json.loads((REPOSITORY / "gpt_output/scenes.json").read_text())
    assert captions[f"{name}.png"]["caption"] == write_caption(scene, make_scenes.SPLITS["test"], index)


def test_objects_are_large_and_every_class_and_backdrop_occurs():
    scenes = [draw_scene(make_scenes.SPLITS["test"], i) for i in range(200)]
    assert np.mean([(s.label > 0).mean() for s in scenes]) > 0.15
    assert {o for s in scenes for o in s.objects} == set(OBJECTS)
    assert {b for s in scenes for b in s.backgrounds} == {*UPPER, *LOWER}


def test_another_split_is_written_whole(tmp_path):
    labels = make_scenes.write_split(tmp_path / "mine", "mine", seed=9, count=3)
    listed = (tmp_path / "mine/ImageSets/Segmentation/mine.txt").read_text().split()
    assert listed == ["mine_00000", "mine_00001", "mine_00002"]
    assert set(labels) == {p.name for p in (tmp_path / "mine/JPEGImages").iterdir()}
    assert json.loads((tmp_path / "mine/classes.json").read_text())[1:] == [[o] for o in OBJECTS]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]  # nothing half-written is left
