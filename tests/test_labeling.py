"""The labeller's parts: words, settings, prices, images and captions."""

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from goca.datasets import SampleError
from goca.labeling import (
    KeyMissing,
    Labeler,
    LabelerConfig,
    LabelingError,
    NoCaption,
    Prices,
    Vocabulary,
    dollars,
    estimate,
    vocabularies,
    vocabulary,
)
from goca.labeling.images import as_jpeg, size_of
from goca.labeling.pricing import patches, scaled, tiles
from goca.labeling.replies import Reply, clean, read_caption
from goca.prompts import parse_brackets, read_captions
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def test_loads_without_torch_and_openai():
    code = "import sys, goca.labeling; assert not {'torch', 'transformers', 'openai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- words -------------------------------------------------------------------------------------------------------


def test_six_benchmarks_have_words_of_their_own(full_record):
    facts = json.loads((full_record.parent / "facts" / "classes.json").read_text())
    assert vocabularies() == sorted(["ade20k", "cityscapes", "coco-object", "coco-stuff", "context", "voc"])
    for name in vocabularies():
        words = vocabulary(name, [])
        assert words.classes == facts[name]["labelling_names"]
        assert words.caption_len == (35 if name == "context" else 20)
        assert len(words.example.replace("(", "").split()) <= words.caption_len
        assert len(parse_brackets(words.example)) > 2


def test_the_instruction_says_the_rules():
    text = vocabulary("voc", []).instruction()
    assert "at most 20 words" in text and "dining table/table" in text and "(person, clothes)" in text
    for word in ("nouns only", "once", "singular", "foreground", "behind", "example"):
        assert word in text
    assert "at most 35 words" in vocabulary("context", []).instruction()
    assert "at most 7 words" in vocabulary("voc", []).instruction(7)
    assert vocabulary("coco-stuff", []).instruction().count("furniture") == 1
    assert "star, moon" in vocabulary("classes.json", [[], ["star"], ["moon"]]).instruction()


def test_an_instruction_of_ones_own(tmp_path):
    file = tmp_path / "ask.txt"
    file.write_text('\ufeffName {caption_len} of: {words}. As JSON: {"list": [...]}\n', encoding="utf-8")
    config = LabelerConfig.of({"model": "m", "instruction": str(file)})
    labeler = Labeler(config, Listed(), Vocabulary([[], ["cat", "kitten"], ["dog"]]), caption_len=3)
    assert labeler.instruction == 'Name 3 of: cat/kitten, dog. As JSON: {"list": [...]}'
    assert labeler.asked()["instruction"] == labeler.instruction  # answers to another one do not mix
    for content in (None, "", " \n", "x" * 20_001, b"\xff\x00"):
        other = tmp_path / "other.txt"
        if content is not None:
            other.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(LabelingError, match=r"labeler\.instruction=.*other\.txt"):
            Labeler(LabelerConfig.of({"model": "m", "instruction": str(other)}), Listed(), Vocabulary([[], ["cat"]]))
    with pytest.raises(LabelingError, match="expected the path of a text file"):
        LabelerConfig.of({"model": "m", "instruction": 3})


class Listed:
    """A data set without images."""

    name, ids = "none", ()


@pytest.mark.parametrize("length", [0, 201, True, "20", 2.5])
def test_caption_length(length):
    with pytest.raises(LabelingError, match="number of words"):
        Vocabulary([[], ["cat"]]).instruction(length)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "labeler.model is not set"),
        ({"modle": "x"}, "has no field modle; fields: model"),
        ({"side": 0}, "from 64 to 4096"),
        ({"workers": 1.5}, "workers is 1.5; expected a number"),
        ({"workers": 1000}, "from 1 to 64"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": True}, "retries is True"),
        ({"price_in": -1}, "price_in"),
        ({"image_tokens": "guess"}, "tiles or patches"),
        ({"options": {"messages": []}}, "are not"),
        ({"base_url": "localhost:8000"}, "such as http://"),
        ({"base_url": "http://me:secret@host/v1"}, "keys come from"),
        ({"base_url": "http://host/v1?api_key=secret"}, "keys come from"),
        ({"key_variable": "sk-secret"}, "give a NAME"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(LabelingError, match=message) as caught:
        LabelerConfig.of({"model": "see-1", **fields} if fields else {})
    assert "secret" not in str(caught.value)


ODD = [
    None,
    True,
    -1,
    2**70,
    10**5000,
    1e40,
    float("nan"),
    "",
    "x",
    "a\0b",
    "\ud800",
    [],
    [0],
    {},
    {0: 1},
    object(),
    {"x": [1e400]},
    {"x": {1, 2}},
    "x" * 50_000,
]


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(LabelerConfig)])
def test_every_setting_takes_its_values_and_answers_all_others_with_a_sentence(key):
    refused = 0
    for odd in ODD:
        try:
            json.dumps(LabelerConfig.of({"model": "see-1", key: odd}).asked())
        except LabelingError as error:
            refused += 1
            assert key in str(error) and len(str(error)) < 500
    assert refused > len(ODD) * 0.6


@pytest.mark.parametrize(
    "fields", [{"model": "KEY"}, {"options": {"user": "KEY"}}, {"options": {"a": {"b": ["KEY"]}}}, {"detail": "KEY"}]
)
@pytest.mark.parametrize("key", ["sk-proj-abcdefghijklmnop", '0123"456\\789abcdef'])
def test_a_key_among_the_settings_is_refused_and_not_repeated(monkeypatch, fields, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    filled = json.loads(json.dumps({"model": "see-1", **fields}).replace("KEY", json.dumps(key)[1:-1]))
    with pytest.raises(LabelingError, match=r"Keys belong in the environment") as caught:
        LabelerConfig.of(filled).key()
    assert key not in str(caught.value)


def test_the_key_comes_from_the_environment(monkeypatch):
    config = LabelerConfig("see-1", key_variable="SEE_KEY")
    monkeypatch.delenv("SEE_KEY", raising=False)
    with pytest.raises(KeyMissing, match="SEE_KEY is not set"):
        config.key()
    monkeypatch.setenv("SEE_KEY", " abc \n")
    assert config.key() == "abc" and "abc" not in repr(config) + str(config.asked())
    monkeypatch.setenv("SEE_KEY", "abc\ndef")
    with pytest.raises(KeyMissing, match="copied correctly") as caught:
        config.key()
    assert "abc" not in str(caught.value)
    assert LabelerConfig("see-1", key_variable=None).key() == "none"


# --- prices and pictures -----------------------------------------------------------------------------------------


def test_tokens_of_a_picture():
    assert tiles(512, 512) == 255 and tiles(1024, 1024) == 765 and tiles(2048, 4096) == 1105  # OpenAI's own examples
    assert patches(28, 28) == 1 and patches(29, 57) == 6
    assert scaled((2048, 1024), 1024) == (1024, 512) and scaled((500, 375), 1024) == (500, 375)
    assert scaled((10_000, 1), 64) == (64, 1)


def test_estimate():
    found = estimate([(500, 375)] * 10, "x" * 400, 20, "tiles", 1024, Prices(2.5, 10))
    assert (found.images, found.tokens_in, found.tokens_out) == (10, 10 * (255 + 110), 400)
    assert found.cost == pytest.approx((3650 * 2.5 + 400 * 10) / 1e6)
    assert estimate([(9, 9)], "", 20, 1000, 1024, Prices(None, 1)).cost is None
    assert dollars(None) == "cost unknown" and dollars(1.234) == "$1.23" and dollars(0.0042) == "$0.0042"
    spent = Prices(1, 2).spent([{"tokens": [10, 5]}, {"tokens": None}, {}])
    assert spent == pytest.approx(20e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_pictures_are_sent_as_small_jpeg(mode):
    found = Image.open(io.BytesIO(as_jpeg(Image.new(mode, (400, 200)), 100, 90)))
    assert (found.format, found.mode, found.size) == ("JPEG", "RGB", (100, 50))


def test_pictures_are_not_enlarged_and_transparency_is_white():
    found = Image.open(io.BytesIO(as_jpeg(Image.new("RGBA", (40, 20), (0, 0, 0, 0)), 100, 90)))
    assert found.size == (40, 20) and found.getpixel((5, 5)) == (255, 255, 255)


def test_size_of_what_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(SampleError, match="cannot be read"):
        size_of(tmp_path / "a.jpg")
    with pytest.raises(SampleError, match="is missing"):
        size_of(tmp_path / "b.jpg")


# --- captions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cat, sky", "cat, sky"),
        ("  Cat, (person,\n clothes). ", "Cat, (person, clothes)."),
        ('"cat, sky"', "cat, sky"),
        ("```\ncat, sky\n```", "cat, sky"),
        ("Caption: cat, sky", "cat, sky"),
        ("- cat\n- (person, clothes),\n- sky", "cat, (person, clothes), sky"),
        ("Answer:\n1. cat\n2. sky", "cat, sky"),
        ("<think>a cat?\nyes</think>\n\ncat", "cat"),
        ("cat\x00, \x1bsky", "cat , sky"),
        ("cat \ud83d", "cat ?"),
    ],
)
def test_captions_are_cleaned(text, expected):
    assert clean(text) == expected


@given(st.text(max_size=300))
def test_any_text_is_a_caption_or_has_a_reason(text):
    try:
        caption = read_caption(Reply(text, "stop", None, None, None), 40)
    except NoCaption as error:
        assert error.reason
    else:
        assert len(caption.split()) <= 40 and parse_brackets(caption) and "\n" not in caption
        json.dumps(caption).encode()


def test_published_captions_would_be_taken(full_record):
    """Real answers of a real model: all but refusals and overlong ones pass."""
    for name, length in (("voc", 20), ("context", 35), ("city", 20), ("ade", 20)):
        captions, _ = read_captions(full_record.parent / "data" / "gpt_output" / f"{name}.json")
        for caption in captions.values():
            assert read_caption(Reply(caption, "stop", None, None, None), 2 * length)
