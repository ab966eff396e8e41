"""Other people's captions, labels and tokenizers, which stand outside the repository: all that the record holds."""

import gzip
import json

import commands
import numpy as np
import pytest
from goca.benchmark import Benchmark
from goca.prompts import annotate
from goca.prompts.grammar import split_first_group
from transformers import AutoTokenizer

PIXELS = 10  # of 48 050, summed over classes: rounding, and the posterior sample (std 3e-7) that no seed fixes


def load(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def in_order(annotation):
    return json.dumps(annotation)  # a text, so that the order of existent_objects counts


@pytest.fixture(scope="module")
def pairs(full_record):
    """What follows the first argument of `annotate`, by the tag of a recorded file."""
    clip, t5, bert = (AutoTokenizer.from_pretrained(full_record / "tokenizers" / n) for n in ("clip", "t5", "bert"))
    return {
        "clip": {"tokenizer": clip},
        "t5": {"tokenizer": t5, "max_length": 300},
        "hunyuan": {"tokenizer": bert, "tokenizer_2": t5, "max_length": 77, "max_length_2": 256},
    }


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
            found = annotate(
                sample["caption"], inputs["class_name"], sample["present"], **pairs[tag], **rules, protocol="released"
            )
            number += 1
            if in_order(found.to_json()) != in_order(expected):
                wrong.setdefault(path.name, []).append(image)
    assert wrong == {} and number >= 4028


def test_every_class_named_has_tokens_in_every_published_shape_of_caption(full_record, pairs):
    for dataset, tag in (("voc", "clip"), ("context", "t5")):
        inputs = load(full_record / "set2_captioner" / f"{dataset}_inputs.json.gz")
        for image, sample in inputs["samples"].items():
            found = annotate(
                sample["caption"],
                inputs["class_name"],
                sample["present"],
                **pairs[tag],
                add_background=inputs["add_background_token"],
                add_missing=True,
            )
            assert found.lost_classes() == [], image
            assert set(found.existent_objects) == set(sample["present"]), image


def test_entity_splitter(full_record):
    for example in json.loads((full_record / "set2_captioner" / "entity_split_examples.json").read_text()):
        assert split_first_group(example["input"]) == example["output"], example["input"]


def test_the_captioner_writes_the_recorded_file_byte_for_byte(full_record, tmp_path):
    tree = full_record / "set6_voc_mini"
    given = commands.voc_mini(full_record, tree)
    commands.caption(*given, "protocol=released", f"annotations={tmp_path / 'out.json'}")
    assert (tmp_path / "out.json").read_bytes() == (tree / "prompt_annotation_voc-15.json").read_bytes()


@pytest.mark.parametrize(("model", "name"), [("sd15", "goca"), ("sd15-vanilla", "vanilla")])
@pytest.mark.parametrize("annotated", ["from the file", "on the fly"])
def test_the_recorded_run_is_met(full_record, tmp_path, model, name, annotated):
    tree = full_record / "set6_voc_mini"
    given = [*commands.voc_mini(full_record, tree), "protocol=released", f"noise_file={tree}/noise.npz"]
    given += [f"annotations={tree}/prompt_annotation_voc-15.json"] if annotated == "from the file" else []
    results = Benchmark.of(commands.values(*given, f"model={model}", f"run_dir={tmp_path}")).run()
    expected = np.load(tree / "expected" / f"counts_{name}.npz")
    for counts in ("intersection", "union"):
        assert np.abs(np.array(results["counts"][counts]) - expected[counts]).sum(axis=1).max() <= PIXELS
    lines = (tmp_path / "evaluation.txt").read_text().splitlines()
    recorded = (tree / "expected" / f"evaluation_{name}.txt").read_text().splitlines()
    for line, other in zip(lines, recorded, strict=True):
        assert line.split()[2:] == other.split()[2:]
        assert float(line.split()[1]) == pytest.approx(float(other.split()[1]), abs=5e-5)
