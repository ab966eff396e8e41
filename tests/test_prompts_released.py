"""Protocol `released`: captions, tokens and key order as recorded, one for one."""

import gzip
import json

import pytest
from goca.prompts import Entity, annotate, read_annotations, read_captions
from goca.prompts.grammar import split_first_group
from goca.prompts.tokens import Token, own_by_search
from transformers import AutoTokenizer, CLIPTokenizer


def load(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def in_order(annotation):
    return json.dumps(annotation)  # a text, so that the order of existent_objects counts


@pytest.mark.parametrize("dataset, tag, max_length", [("voc", "clip", None), ("context", "t5", 300)])
def test_recorded_captions_are_met_exactly(goldens, dataset, tag, max_length):
    inputs = load(goldens / "set2_captioner" / f"{dataset}_inputs.json.gz")
    expected = load(goldens / "set2_captioner" / f"{dataset}_{tag}.json.gz")["outputs"]
    tokenizer = AutoTokenizer.from_pretrained(goldens / "tokenizers" / tag)
    wrong = []
    for image, sample in inputs["samples"].items():
        found = annotate(
            sample["caption"], inputs["class_name"], sample["present"], tokenizer, max_length=max_length,
            add_background=inputs["add_background_token"], add_missing=inputs["add_missing_class"], protocol="released",
        )
        if in_order(found.to_json()) != in_order(expected[image]):
            wrong.append(image)
    assert len(expected) > 900 and wrong == []


def test_entity_splitter(goldens):
    for example in json.loads((goldens / "set2_captioner" / "entity_split_examples.json").read_text()):
        assert split_first_group(example["input"]) == example["output"], example["input"]


def test_the_captioner_file_of_the_small_voc(goldens):
    tree = goldens / "set6_voc_mini"
    names = load(goldens / "set2_captioner" / "voc_inputs.json.gz")["class_name"]
    present = {"2007_000001.jpg": [8], "2007_000002.jpg": [15, 13], "2007_000003.jpg": [7, 6],
               "2007_000004.jpg": [20], "2007_000005.jpg": [18, 8]}
    tokenizer = CLIPTokenizer.from_pretrained(goldens / "pipelines" / "sd15" / "tokenizer")
    captions, refused = read_captions(tree / "gpt_output" / "voc.json")
    assert refused == {}
    for image, expected in read_annotations(tree / "prompt_annotation_voc-15.json").items():
        found = annotate(captions[image], names, present[image], tokenizer,
                         add_background=True, add_missing=True, protocol="released")
        assert in_order(found.to_json()) == in_order(expected.to_json()), image


def words(*pieces):
    return [Token(i, piece, (0, 0), "word") for i, piece in enumerate(pieces)]


def test_search_takes_the_first_occurrence_even_inside_a_longer_word():
    entities = [Entity("street tree"), Entity("tree", 3)]
    owners = own_by_search(entities, "street tree, tree", words("street", "tree", ",", "tree"))
    assert owners == [0, 0, None, None]  # 'tree' has its span inside 'street tree', so the class stays empty


def test_search_steps_back_one_character_where_a_piece_is_not_found():
    # "##at" is not found at 1: it counts as [0, 4) and the search goes on at 4, past "mat" it begins anew
    owners = own_by_search([Entity("cat", 1), Entity("mat", 2)], "cat, mat", words("c", "##at", "mat", "cat"))
    assert owners == [0, None, 1, 0]
