"""The harder embedded images: the same on every machine, with overlaps, shared colours and a labeller's captions."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from goca.datasets import load_dataset
from goca.prompts import annotate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedded import scenes_hard  # noqa: E402
from embedded.mini_data import DATA_SEED, HELD_OUT_SEED  # noqa: E402
from embedded.mini_parts import build_t5_tokenizer  # noqa: E402
from embedded.scenes_hard import CLASSES, KINDS, LEAST, OBJECTS, PARTS, caption_kind, caption_of, draw_scene  # noqa: E402
from make_scenes import HARD_SPLITS, SPLITS, write_split  # noqa: E402

EMBEDDED = REPOSITORY / "src-main/goca/embedded/scenes-hard"
TEST = [draw_scene(HARD_SPLITS["test"], index) for index in range(60)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**6))
def test_a_scene_is_what_its_words_say(seed, index):
    scene = draw_scene(seed, index)
    counts = {k: int((scene.label == k).sum()) for k in np.unique(scene.label) if k}
    assert [OBJECTS[k - 1] for k in sorted(counts)] == scene.objects == list(scene.words["objects"])
    assert 1 <= len(counts) <= 4 and min(counts.values()) >= LEAST
    assert set(scene.colours) == set(scene.objects)
    assert (draw_scene(seed, index).image == scene.image).all()


def test_the_first_images_are_these_bytes_on_every_machine():
    found = hashlib.sha256(b"".join(scene.image.tobytes() + scene.label.tobytes() for scene in TEST[:8])).hexdigest()
    assert found[:16] == "a5f0e0ff968bc543"


@pytest.mark.parametrize("index", range(0, 60, 7))
def test_the_committed_test_split_is_redrawn_pixel_by_pixel(index):
    scene, name = TEST[index], f"test_{index:05d}"
    assert (np.asarray(Image.open(EMBEDDED / f"JPEGImages/{name}.png")) == scene.image).all()
    label = Image.open(EMBEDDED / f"SegmentationClass/{name}.png")
    assert label.mode == "P" and (np.asarray(label) == scene.label).all()
    captions = json.loads((REPOSITORY / "gpt_output/scenes-hard.json").read_text())
    written = scenes_hard.write_caption(scene, HARD_SPLITS["test"], index)
    assert captions[f"{name}.png"]["caption"] == written


def test_it_is_harder_than_scenes():
    sizes = [scenes_hard.size_of(scene, k) for scene in TEST for k in np.unique(scene.label) if k]
    assert {"small", "medium", "large"} == set(sizes) and sizes.count("small") > 0.1 * len(sizes)
    colours_of = {name: {scene.colours[name] for scene in TEST if name in scene.objects} for name in OBJECTS}
    assert all(len(colours) > 1 for colours in colours_of.values())  # no class has a colour of its own
    assert np.mean([len(scene.objects) for scene in TEST]) > 2.5
    assert sum(" " in name for name in OBJECTS) == 3


def test_no_split_shares_a_seed_with_another_or_with_the_training():
    seeds = [*SPLITS.values(), *HARD_SPLITS.values(), DATA_SEED, HELD_OUT_SEED]
    assert len(set(seeds)) == len(seeds)


def test_each_kind_of_caption_does_what_it_is_called():
    words, random = TEST[0].words, np.random.RandomState(0)
    captions = {kind: [caption_of(words, random, kind) for _ in range(30)] for kind in KINDS}
    split = {kind: [caption.split(", ") for caption in found] for kind, found in captions.items()}
    everything = sorted([*words["objects"], *words["backgrounds"]])
    assert all(sorted(items) == everything for items in split["plain"])
    assert all(item.split()[0] in ("a", "an", "the") for items in split["articles"] for item in items)
    coloured = {f"{words['colours'][name]} {name}" for name in words["objects"]}
    assert any(coloured.intersection(items) for items in split["adjectives"])
    synonyms = {names[-1] for names in CLASSES if len(names) > 1}
    assert any(synonyms.intersection(items) for items in split["synonyms"])
    assert any(
        "(" in caption and any(part in caption for parts in PARTS.values() for part in parts)
        for caption in captions["parts"]
    )
    assert all(len(items) == len(everything) - 1 for items in split["left out"])
    absent = set(OBJECTS) - set(words["objects"])
    assert all(len(absent.intersection(items)) == 1 for items in split["not there"])


def test_every_kind_of_caption_occurs_as_often_as_it_should():
    kinds = [caption_kind(5, index) for index in range(3000)]
    assert all(abs(kinds.count(kind) / 3000 - share) < 0.03 for kind, share in KINDS.items())


def test_the_reader_takes_it_and_names_of_two_words_own_both_tokens():
    fields = {
        "name": "scenes-hard",
        "reader": "voc",
        "root": "goca:scenes-hard",
        "split": "test",
        "classes": "classes.json",
    }
    dataset = load_dataset(fields)
    assert len(dataset.ids) == 200 and len(dataset.class_names) == 15
    class_id = OBJECTS.index("traffic light") + 1
    found = annotate(
        "a stoplight, the sky",
        dataset.class_names,
        [class_id],
        build_t5_tokenizer(),
        add_background=False,
        add_missing=True,
    )
    assert len(found.existent_objects[class_id]) == 1
    found = annotate(
        "sky, traffic light",
        dataset.class_names,
        [class_id],
        build_t5_tokenizer(),
        add_background=False,
        add_missing=True,
    )
    assert len(found.existent_objects[class_id]) == 2


def test_another_split_is_written_whole(tmp_path):
    labels = write_split(tmp_path / "mine", "mine", seed=9, count=3, world="scenes-hard")
    assert set(labels) == {p.name for p in (tmp_path / "mine/JPEGImages").iterdir()}
    assert json.loads((tmp_path / "mine/classes.json").read_text()) == [list(names) for names in CLASSES]
