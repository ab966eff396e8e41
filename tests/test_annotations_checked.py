"""Annotations and captions from outside: what cannot be used is a recorded skip, what is odd a recorded note."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, values
from goca.benchmark import Benchmark
from goca.benchmark.inputs import AnnotationFile, Captions, oddities
from goca.datasets import SampleError
from goca.prompts import AnnotationError, PromptAnnotation, read_annotations
from goca.segmenter import EmptyClass, PositionsBeyond, Segmenter
from hypothesis import given
from hypothesis import strategies as st

GOOD = {
    "caption": "star, sky",
    "rescaling_token_id": [1, 3],
    "existent_objects": {"1": [1]},
    "global_token_id": [0],
    "background_objects": [[3]],
}
UNUSABLE = {
    "a position beyond all texts": {"rescaling_token_id": [2**70]},
    "a negative one": {"background_objects": [[-1]]},
    "no content word": {"rescaling_token_id": []},
    "an empty caption": {"caption": " "},
    "a caption that is no text": {"caption": None},
    "a class id of 5000 digits": {"existent_objects": {"9" * 5000: [1]}},
    "a class id as a word": {"existent_objects": {"star": [1]}},
    "positions as texts": {"existent_objects": {"1": ["1"]}},
}
NAMES = [f"test_{number:05}.png" for number in range(3)]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


@pytest.mark.parametrize("change", UNUSABLE.values(), ids=UNUSABLE)
def test_an_annotation_that_cannot_be_used_skips_its_image_alone(tmp_path, change):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"a.png": GOOD | change, "b.png": GOOD}))
    source = AnnotationFile(path)
    assert source(SimpleNamespace(name="b.png", remarks=[])).caption == "star, sky"
    with pytest.raises(SampleError, match=r"annotation of a\.png: .*(caption|rescaling|existent|background)") as caught:
        source(SimpleNamespace(name="a.png", remarks=[]))
    assert len(str(caught.value)) < 400


def test_a_file_that_is_read_for_its_own_sake_is_strict(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"a.png": GOOD | {"rescaling_token_id": [-1]}}))
    with pytest.raises(AnnotationError, match=r"annotations\.json, image 'a\.png': rescaling_token_id holds -1"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 100"),
        ('{"a.png": ' + "[" * 150 + "]" * 150 + "}", "nested deeper than 100"),
        ('{"a.png": {"caption": ' + "9" * 5000 + "}}", "has 5000 digits"),
        ('{"a.png": 1, "a.png": 2}', "duplicate key 'a.png'"),
        ("\ufeff{", "is not JSON"),
        ("[]", "expected an object"),
    ],
)
@pytest.mark.parametrize("reader", [AnnotationFile, Captions])
def test_json_beyond_its_bounds_is_a_named_error(tmp_path, text, message, reader):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=message):
        reader(path)


def test_labels_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.png": {"caption": "star"}}), encoding="utf-8-sig")
    assert Captions(path).captions == {"a.png": "star"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rescaling_token_id": [1, 1_000_000]}, "rescaling_token_id"),
        ({"background_objects": [[1_000_000]]}, "background_objects"),
        ({"existent_objects": {"1": [1, 99]}}, "existent_objects"),
    ],
)
def test_positions_beyond_the_text_are_warned_of(segmenter, change, name):
    attention = torch.rand(4, 4, 77)
    with pytest.warns(PositionsBeyond, match=rf"{name} names the positions \d+; the text encoder reads 77 tokens"):
        beyond = segmenter.rescale(attention, PromptAnnotation.from_json(GOOD | change))
    kept = {"rescaling_token_id": [1], "background_objects": [[]], "existent_objects": {"1": [1]}}[name]
    assert beyond.equal(segmenter.rescale(attention, PromptAnnotation.from_json(GOOD | {name: kept})))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.rescale(attention, PromptAnnotation.from_json(GOOD))
    with pytest.warns(EmptyClass):
        segmenter.rescale(attention, PromptAnnotation.from_json(GOOD | {"existent_objects": {"1": [99]}}))


def run(tmp_path, *more):
    given = ["model=mini-sd", "dataset=scenes", "limit=3", "device=cpu", f"run_dir={tmp_path / 'run'}", *more]
    return Benchmark.of(values(*given)).run()


def test_a_run_records_what_its_annotations_say_wrongly(tmp_path):
    path = tmp_path / "annotations.json"
    changes = [{"rescaling_token_id": [1, 3, 1_000_000]}, {"rescaling_token_id": [2**70]}, {}]
    path.write_text(json.dumps({name: GOOD | change for name, change in zip(NAMES, changes)}))
    results = run(tmp_path, f"annotations={path}")
    assert [each["image"] for each in results["images"]["skipped"]] == ["test_00001"]
    assert "rescaling_token_id holds 1180591620717411303424" in results["images"]["skipped"][0]["reason"]
    (note,) = results["warnings"]["notes"]
    assert note["image"] == "test_00000" and "names the positions 1000000" in note["text"]


@pytest.mark.parametrize(
    ("caption", "note"),
    [("", "holds no word"), (" , ,", "holds no word"), ("star\0, sky", "NUL"), ("star, \ud800", "surrogate")],
)
def test_a_run_records_captions_that_say_nothing(tmp_path, caption, note):
    labels = json.loads((ROOT / "gpt_output/scenes.json").read_text())
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({name: labels[name] for name in NAMES} | {NAMES[1]: {"caption": caption}}))
    results = run(tmp_path, f"dataset.labels={path}", "dataset.add_missing=false")
    assert results["images"]["counted"] == 3
    assert [each["image"] for each in results["warnings"]["notes"] if note in each["text"]] == ["test_00001"]
    (tmp_path / "run/report.html").read_text()


@given(st.lists(st.sampled_from(["cat", ", ", " ", "\0", "\ud800", "(", "3"]), max_size=4).map("".join))
def test_a_caption_is_odd_for_what_is_in_it(caption):
    found = oddities(caption)
    assert any("NUL" in each for each in found) == ("\0" in caption)
    assert any("surrogate" in each for each in found) == ("\ud800" in caption)
    assert any("no word" in each for each in found) == (not any(each.isalnum() for each in caption))
