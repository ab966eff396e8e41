"""Other people's captions, labels and tokenizers, which stand outside the repository: all that the record holds."""

import gzip
import json

import pytest
from goca.prompts import annotate
from goca.prompts.grammar import split_first_group
from transformers import AutoTokenizer


def load(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def in_order(annotation):
    return json.dumps(annotation)  # a text, so that the order of existent_objects counts


@pytest.fixture(scope="module")
def pairs(full_record):
    """What follows the first argument of `annotate`, by the tag of a recorded file."""
    clip, t5, bert = (AutoTokenizer.from_pretrained(full_record / "tokenizers" / n) for n in ("clip", "t5", "bert"))
    return {"clip": {"tokenizer": clip}, "t5": {"tokenizer": t5, "max_length": 300},
            "hunyuan": {"tokenizer": bert, "tokenizer_2": t5, "max_length": 77, "max_length_2": 256}}  # fmt: skip


def test_recorded_captions_are_met_exactly(full_record, pairs):
    folder = full_record / "set2_captioner"
    wrong, number = {}, 0
    for path in sorted(folder.glob("*_*.json.gz")):
        dataset, _, tag = path.name.removesuffix(".json.gz").partition("_")
        if tag not in pairs:
            continue
        inputs = load(folder / f"{dataset}_inputs.json.gz")
        rules = {"add_background": inputs["add_background_token"], "add_missing": inputs["add_missing_class"]}
        for image, expected in load(path)["outputs"].items():
            sample = inputs["samples"][image]
            found = annotate(sample["caption"], inputs["class_name"], sample["present"], **pairs[tag], **rules,
                             protocol="released")  # fmt: skip
            number += 1
            if in_order(found.to_json()) != in_order(expected):
                wrong.setdefault(path.name, []).append(image)
    assert wrong == {} and number >= 4028


def test_every_class_named_has_tokens_in_every_published_shape_of_caption(full_record, pairs):
    for dataset, tag in (("voc", "clip"), ("context", "t5")):
        inputs = load(full_record / "set2_captioner" / f"{dataset}_inputs.json.gz")
        for image, sample in inputs["samples"].items():
            found = annotate(sample["caption"], inputs["class_name"], sample["present"], **pairs[tag],
                             add_background=inputs["add_background_token"], add_missing=True)  # fmt: skip
            assert found.lost_classes() == [], image
            assert set(found.existent_objects) == set(sample["present"]), image


def test_entity_splitter(full_record):
    for example in json.loads((full_record / "set2_captioner" / "entity_split_examples.json").read_text()):
        assert split_first_group(example["input"]) == example["output"], example["input"]
