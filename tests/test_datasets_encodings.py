"""What label files hold is found out by looking, is said, and is never guessed."""

import json
from pathlib import Path

import numpy as np
import pytest
from goca.datasets import READERS, VOID, DatasetError, SampleError
from goca.datasets.base import class_table
from goca.datasets.cityscapes import CityscapesDataset
from goca.datasets.coco import UNUSED, CocoObjectDataset, CocoStuffDataset
from goca.datasets.context import ContextDataset
from goca.datasets.encodings import UNKNOWN, find_encoding
from omegaconf import OmegaConf

STUFF = {each.name: each for each in CocoStuffDataset.encodings}
CONFIGS = Path(__file__).parents[1] / "configs/dataset"
FACTS = {"voc": 21, "context": 60, "coco-object": 81, "coco-stuff": 28, "cityscapes": 20, "ade20k": 151}


@pytest.fixture(scope="module")
def facts(full_record):
    return json.loads((full_record.parent / "facts/classes.json").read_text())


@pytest.mark.parametrize("name", FACTS)
def test_class_names_are_those_of_the_official_evaluation(facts, name):
    table = class_table(name, Path())
    assert table == facts[name]["matching_names"] and len(table) == FACTS[name]


@pytest.mark.parametrize("name", FACTS)
def test_every_benchmark_has_a_config_with_both_splits(name):
    fields = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    assert fields["reader"] in READERS
    assert fields["split"] == "published" and set(fields["splits"]) == {"published", "clean"}
    expected = {"voc": 1464, "context": 964, "coco-object": 5000, "coco-stuff": 5000, "cityscapes": 500, "ade20k": 2000}
    assert fields["images"][fields["splits"]["published"]] == expected[name]
    assert fields["add_background"] == (name in ("voc", "coco-object", "ade20k"))
    assert fields["add_missing"] == (name in ("voc", "context", "coco-stuff"))


def test_coco_stuff_folds_and_shifts_as_the_official_mapping(facts):
    folded = {15: 3, 16: 4}
    for key, value in facts["coco-stuff"]["fine_to_coarse"].items():
        coarse = folded.get(value + 1, value + 1)
        assert STUFF["0-181"].table[int(key)] == STUFF["1-182"].table[int(key) + 1] == coarse
    assert STUFF["1-182"].table[0] == STUFF["1-182"].table[255] == STUFF["0-181"].table[255] == VOID
    assert STUFF["0-181"].table[182] == STUFF["1-182"].table[183] == UNKNOWN
    assert not set(STUFF["0-181"].table[:182]) & {0, 15, 16}


def test_cityscapes_ids_agree(facts):
    label_ids, train_ids = (each.table for each in CityscapesDataset.encodings)
    given = {int(key): value for key, value in facts["cityscapes"]["label_id_to_class"].items()}
    assert {v: label_ids[v] for v in range(34)} == {v: given.get(v, VOID) for v in range(34)}
    for train_id, label_id in enumerate(sorted(given)):
        assert train_ids[train_id] == label_ids[label_id] == train_id + 1


def test_context_orders_agree(facts):
    raw, by_id, listed = (each.table for each in ContextDataset.encodings)
    kept = facts["context"]["raw_label_ids"]
    assert [raw[value] for value in kept] == [listed[value] for value in range(60)] == list(range(60))
    assert [by_id[value] for value in range(60)] == [kept.index(value) for value in sorted(kept)]
    names = [class_table("context", Path())[by_id[value]][0] for value in range(1, 60)]
    assert names == sorted(names)  # the usual PNGs count the classes by the alphabet, this table does not
    assert raw[1] == 0 and raw[459] == 0 and raw[460] == UNKNOWN


def test_coco_categories_leave_ten_out():
    table = next(each for each in CocoObjectDataset.encodings if each.name == "categories").table
    assert [int(value) for value in np.flatnonzero(table[:91] == UNKNOWN)] == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert table[90] == 80 and table[17] == 16


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([{1, 92, 182}], "1-182"),  # counted from 0, there is no 182
        ([{0, 12, 255}], "0-181"),  # a stop sign counted from 0; counted from 1, nothing was labelled 12
        ([{0, 5, 100}, {1, 11}], "1-182"),
        ([{0, 5, 100, 255}], "0-181"),  # files that count from 1 have 0 for void
        ([{0, 255, 11, 100}, {0, 13, 182}], "1-182"),  # void in both ways; the rest decides
        ([set(range(183))], "1-182"),
        ([{*range(182), 255}], "0-181"),
        ([{3, 200}, {1, 92, 182}], "1-182"),  # one torn file does not stop the rest
    ],
)
def test_stuff_is_told_apart(files, found):
    files = [(Path(f"{i}.png"), values) for i, values in enumerate(files)]
    assert find_encoding(CocoStuffDataset.encodings, files, "stuff").name == found


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{0, 5, 100}], r"more than one encoding; set dataset\.encoding to one of: 0-181 .*1-182"),
        ([], "more than one encoding"),
        ([{0, 12, 255}, {1, 11}], "mixed: 0.png looks like '0-181'; 1.png looks like '1-182'"),
        ([{1, 200}], r"0\.png is not a label of stuff: it holds the values \[200\]"),
    ],
)
def test_what_cannot_be_told_is_asked(files, message):
    files = [(Path(f"{i}.png"), values) for i, values in enumerate(files)]
    with pytest.raises(DatasetError, match=message):
        find_encoding(CocoStuffDataset.encodings, files, "stuff")


def test_unused_values_are_those_that_no_picture_has():
    assert {value + 1 for value in UNUSED} == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def test_unknown_values_are_named():
    with pytest.raises(SampleError, match=r"holds the values \[182, 200\]"):
        STUFF["0-181"](np.array([[0, 182], [200, 255]], np.uint8))
    with pytest.raises(SampleError, match=r"\[460\]"):
        ContextDataset.encodings[0](np.array([[460, 2]], np.uint16))
