"""The word "background" in a prompt is never a class of its own: every segmentation has the background already."""

import json
from pathlib import Path

import pytest
import torch
from goca.cli import main
from goca.embedded import resolve
from goca.open import Query
from goca.prompts.grammar import is_background
from goca.segmenter import NoClass

SCENE = str(Path(resolve("goca:scenes")) / "JPEGImages" / "test_00000.png")
WORDS = ["star, background", "Background, star", ["star", "the background"]]


@pytest.mark.parametrize("ask", ["open", "complete"])
@pytest.mark.parametrize("words", WORDS)
def test_the_library_has_one_background(embedded, words, ask):
    found = embedded(SCENE, words, ask=ask)
    assert found.names == ["star", "background"] and found.class_ids == [1, 0]


def test_its_tokens_are_the_background_s_where_the_prompt_is_complete(embedded):
    annotation, names = embedded.read_prompt("star, background, wall")
    assert sorted(names.values()) == ["star", "wall"] and len(annotation.background_objects) == 1
    tokens = {token for positions in annotation.existent_objects.values() for token in positions}
    assert tokens.isdisjoint(annotation.background_objects[0])
    assert embedded(SCENE, "star, background", ask="complete").scores[-1].max() > 0
    assert not embedded(SCENE, "star", ask="complete").scores[-1].any()


def test_open_looks_for_the_other_words_alone(embedded):
    assert Query.of_words("cat, (background, wall), dog") == Query.of_words("cat, dog")
    plain, with_it = (embedded(SCENE, words, ask="open").scores for words in ("star", "star, background"))
    assert torch.equal(plain, with_it)


@pytest.mark.parametrize("ask", ["open", "complete"])
def test_the_background_alone_names_nothing(embedded, ask):
    with pytest.raises(NoClass, match="contains no class names"):
        embedded(SCENE, "the background", ask=ask)


def test_other_words_with_it_are_words():
    assert is_background("a Background ") and not is_background("background noise") and not is_background("")


def test_the_command_writes_one_mask_for_it(loaded, tmp_path):
    assert main(["segment", SCENE, "--prompt", "star, background", "--out", str(tmp_path)]) == 0
    names = [row["name"] for row in json.loads((tmp_path / "test_00000.json").read_text())["classes"]]
    assert names == ["star", "background"]


def test_a_generated_image_has_one_background(tmp_path):
    from goca import embedded_pipeline, trace

    pipe = embedded_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with trace(pipe) as traced:
        pipe("star, background, sky", num_inference_steps=1)
    for words in (None, "star, background, sky"):
        found = traced.segment(words)
        assert [name for name in found.names if name != "background"] == ["star", "sky"]
        assert found.class_ids.count(0) == 1 and found.names.count("background") == 1


def test_the_page_has_one_background(loaded):
    pytest.importorskip("gradio")
    from goca.app.models import Choice, Models
    from goca.app.runs import segment

    found = segment(Models("cpu"), Choice("mini-sd"), SCENE, "star, background").segmentation
    assert found.names == ["star", "background"]
