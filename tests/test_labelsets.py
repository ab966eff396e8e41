"""Tags, decisions, plans, stores: the parts of labelled sets that need no model."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from goca.formats import Labelled
from goca.labelsets.classtable import class_table, write_table
from goca.labelsets.decision import decide
from goca.labelsets.errors import LabelSetError, PlanError, TagsMismatch, TagsUnreadable
from goca.labelsets.plan import balanced, from_captions, image_seed, is_validation
from goca.labelsets.review import write_review
from goca.labelsets.store import Store, open_batches
from goca.labelsets.synthetic import STEP_RULES, Generation, never_there
from goca.labelsets.tags import read_tags
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

PHOTOS = ["a.jpg", "sub/b.jpg", "sub/c.png"]
WANTED = {"a.jpg": ("cat", "grass"), "sub/b.jpg": ("dog",), "sub/c.png": ("red car",)}
FORMS = {
    "plain.csv": "a.jpg,cat,grass\nb.jpg,dog\nc,Red  Car\n",
    "header.csv": '\ufeffimage,tags\r\na.jpg,"cat, grass"\r\nsub/b.jpg,dog\r\nsub\\c.png,red car\r\n',
    "rows.csv": "a.jpg,cat\na.jpg,grass; cat\n./sub/b.jpg,dog\nc.png,red car,\n",
    "lists.json": json.dumps({"a.jpg": ["cat", "grass"], "b.jpg": ["dog"], "c": ["red car"]}),
    "captions.json": json.dumps({"a": {"caption": "cat, grass"}, "b": {"caption": "dog"}, "c": "red car"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_tags_in_every_form(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8", newline="")
    assert read_tags(str(tmp_path / name), PHOTOS) == WANTED


def test_folders_as_tags():
    assert read_tags("folders", ["cat/1.jpg", "dog/sub/2.jpg"]) == {
        "cat/1.jpg": ("cat",),
        "dog/sub/2.jpg": ("dog", "sub"),
    }
    with pytest.raises(TagsMismatch, match="1 of 2 photos have no tags"):
        read_tags("folders", ["cat/1.jpg", "2.jpg"])


def test_tags_and_photos_must_fit(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text("a.jpg,cat\nnone.jpg,dog\nsub/b.jpg,dog\nsub/c.png,car\n")
    with pytest.raises(TagsMismatch, match=r"1 tagged photos are not there \(none.jpg\).*--allow-missing"):
        read_tags(str(path), PHOTOS)
    path.write_text("a.jpg,cat\n")
    with pytest.raises(TagsMismatch, match=r"2 of 3 photos have no tags \(sub/b.jpg, sub/c.png\)"):
        read_tags(str(path), PHOTOS)
    assert read_tags(str(path), PHOTOS, missing=True) == {"a.jpg": ("cat",)}
    path.write_text("x,cat\n")
    with pytest.raises(TagsMismatch, match="1 of 1 photos have no tags"):
        read_tags(str(path), ["a.jpg"], missing=True)
    with pytest.raises(TagsMismatch, match="names 2 photos"):
        path.write_text("x.jpg,cat\n")
        read_tags(str(path), ["p/x.jpg", "q/x.jpg"])


@pytest.mark.parametrize("text", ['{"a.jpg": 3}', '["a.jpg"]', '{"a.jpg": [', ",cat\n", 'a.jpg,"cat\n'])
def test_unreadable_tags_show_the_forms(tmp_path, text):
    path = tmp_path / "tags"
    path.write_text(text)
    with pytest.raises(TagsUnreadable, match="expected one of these forms"):
        read_tags(str(path), ["a.jpg"])


def test_close_scores_are_void():
    scores = torch.tensor([[0.5, 0.9], [0.45, 0.1]])[:, None]  # [2, 1, 2]
    found = decide(scores, [3, 0], (1, 2), doubt=0.1)
    assert found.label.tolist() == [[255, 3]] and found.doubt == 0.5 and found.areas == {3: 0.5}
    assert decide(scores, [3, 0], (1, 2), doubt=0.0).label.tolist() == [[3, 3]]
    assert decide(scores, [3, 0], (1, 2), doubt=0.0, unsure=[3]).label.tolist() == [[255, 255]]


def test_maps_of_one_class_are_no_rivals():
    scores = torch.tensor([[0.2], [0.9], [0.89]])[:, None]  # two background maps that are close
    assert decide(scores, [1, 0, 0], (1, 1), doubt=0.5).label.tolist() == [[0]]


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_more_doubt_voids_more(seed, one, other):
    low, high = sorted((one, other))
    scores = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))
    few, many = (decide(scores, [1, 2, 0], (8, 8), doubt) for doubt in (low, high))
    assert ((few.label == 255) <= (many.label == 255)).all()
    kept = many.label != 255
    assert (few.label[kept] == many.label[kept]).all()


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        decide(torch.full((2, 1, 1), float("nan")), [1, 0], (1, 1))


CLASSES = {1: "star", 2: "fish", 3: "tree"}


@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 3))
def test_plans_are_balanced_and_grow_at_their_end(count, seed, most):
    plan = balanced(CLASSES, count, seed, (1, most), ["sky, grass", "wall, road"])
    used = Counter(class_id for each in plan for class_id in each.class_ids)
    assert max(used.values()) - min(used[each] for each in CLASSES) <= 1
    assert all(1 <= len(each.class_ids) <= most for each in plan)
    assert all(CLASSES[class_id] in each.caption for each in plan for class_id in each.class_ids)
    longer = balanced(CLASSES, count + 7, seed, (1, most), ["sky, grass", "wall, road"])
    assert longer[:count] == plan


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"together": (2, 1)},
        {"together": (1, 4)},
        {"template": "nothing"},
        {"template": "{objects} {background}"},
        {"backgrounds": ["sky"], "template": "{objects}"},
    ],
)
def test_plans_that_cannot_be(given):
    with pytest.raises(PlanError):
        balanced(CLASSES, **{"count": 3, "seed": 0, **given})


def test_captions_ask_for_the_classes_that_they_name():
    plan = from_captions(CLASSES, ["A Star, on grass", "treetop and fish"], 3)
    assert [each.class_ids for each in plan] == [(1,), (2,), (1,)]
    with pytest.raises(PlanError, match="names none of the classes"):
        from_captions(CLASSES, ["a treetop"], 1)


def test_seeds_and_splits():
    assert len({image_seed(s, n, a) for s in range(3) for n in range(20) for a in range(3)}) == 180
    names = [f"{number:06d}" for number in range(2000)]
    assert 150 < sum(is_validation(name, 0.1) for name in names) < 250
    assert not any(is_validation(name, 0) for name in names) and all(is_validation(name, 1) for name in names)


def test_step_rules_choose_steps():
    for rule in STEP_RULES.values():
        for count in (1, 2, 7, 20):
            assert list(range(count))[rule(count)]
    assert list(range(5))[STEP_RULES["second half"](5)] == [2, 3, 4]
    with pytest.raises(PlanError, match="expected one of: all, first half"):
        Generation(traced="some")


def test_classes_that_never_come_out_are_named_with_their_tries():
    records = [
        {"classes": ["star", "fish"], "missing": ["fish"], "tries": 3},
        {"classes": ["fish"], "missing": ["fish"], "tries": 2},
    ]
    assert never_there(records, CLASSES) == {"fish": 5}


def test_class_ids_stay(tmp_path):
    first = class_table(tmp_path, {"dog", "cat"})
    assert first == {1: "cat", 2: "dog"}
    write_table(tmp_path, first)
    assert class_table(tmp_path, {"ant", "dog"}) == {1: "cat", 2: "dog", 3: "ant"}
    with pytest.raises(LabelSetError, match="at most 254 classes"):
        class_table(tmp_path, {str(number) for number in range(300)})


def test_a_folder_of_other_settings_is_refused(tmp_path):
    Store(tmp_path, {"doubt": 0.1}).close()
    with pytest.raises(LabelSetError, match=r"doubt: 0.1 there, 0.2 now"):
        Store(tmp_path, {"doubt": 0.2})
    store = Store(tmp_path, {"doubt": 0.1})
    with pytest.raises(LabelSetError, match="another process"):
        Store(tmp_path, {"doubt": 0.1})
    store.close()


def test_half_written_lines_do_not_count(tmp_path):
    store = Store(tmp_path, {})
    store.add({"name": "one"})
    store.close()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"name":"two","crc32":1}\n{"name":"thr')
    store = Store(tmp_path, {})
    assert list(store.records()) == ["one"]
    store.close()


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 3), st.sets(st.integers(0, 29)))
def test_open_batches_are_those_of_the_whole(count, size, ranks, done):
    items = list(range(count))
    names = [str(each) for each in items]
    whole = [items[start : start + size] for start in range(0, count, size)]
    finished = {str(each): {} for each in done}
    dealt = [batch for rank in range(ranks) for batch in open_batches(items, names, finished, size, rank, ranks)]
    assert sorted(dealt) == [batch for batch in whole if not set(batch) <= done]


def test_the_review_page_sorts_by_doubt_and_escapes(tmp_path):
    def item(name, doubt):
        record = {"doubt": doubt, "areas": {"<b>": 0.5}, "classes": ["<script>alert(1)</script>"]}
        return Labelled(name, np.ones((8, 8), np.uint8), Image.new("RGB", (8, 8)), record=record)

    write_review(tmp_path / "review.html", [item("low", 0.1), item("high", 0.6), item("mid", 0.3)], {1: "<b>"}, most=2)
    text = (tmp_path / "review.html").read_text()
    assert text.index("high") < text.index(">mid<") and ">low<" not in text
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert "http" not in text  # nothing is fetched
