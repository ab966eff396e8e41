"""Brackets as written: which entities a caption holds, and which class each names."""

import pytest
from goca.prompts import parse_brackets
from goca.prompts.grammar import CaptionError, Entity, Request, is_mark, read_brackets, read_first_group
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = [[], ["person", "man"], ["cat"], ["car", "truck"], ["dining table", "table"], [], ["man", "tree"]]
captions = st.text(st.sampled_from("()[]，,;. \n-'abcé\u0301İßcarmtn1🐱"), max_size=40)


def read(caption, present=(1, 2, 3, 4, 6), add_background=False, add_missing=False, reader=read_brackets):
    return [(e.text, e.class_id) for e in reader(Request(caption, NAMES, list(present), add_background, add_missing))]


@pytest.mark.parametrize(
    "caption, groups",
    [
        ("cat, grass", ["cat", "grass"]),
        ("sky, (truck), road", ["sky", "truck", "road"]),
        ("sky, (truck), road, (car, wheel), tree", ["sky", "truck", "road", "car|wheel", "tree"]),
        ("(truck), road", ["truck", "road"]),
        ("a (b, c), d", ["a|b|c", "d"]),
        ("(b, c) and d, e", ["b|c", "and d", "e"]),
        ("sky, (a, (b, c), d), e", ["sky", "a|b|c|d", "e"]),
        ("(cat)(dog), sky", ["cat", "dog", "sky"]),
        ("(cat,dog), grass", ["cat|dog", "grass"]),
        ("sky, (truck", ["sky", "truck"]),  # never closed: read as if it were not there
        ("(sky, (truck, tyre), road", ["sky", "truck|tyre", "road"]),
        ("sky), truck", ["sky", "truck"]),
        (")(", []),
        ("a,, b , c.", ["a", "b", "c"]),
        ("'cat'; dog\nsky", ["cat", "dog", "sky"]),
        ("[cat, {dog}]", ["cat|dog"]),
        ("", []),
        (" .,() ", []),
        ("t-shirt, o'neill", ["t-shirt", "o'neill"]),
        ("cat, cat, (cat)", ["cat"]),
    ],
)
def test_groups(caption, groups):
    assert ["|".join(group) for group in parse_brackets(caption)] == groups


@settings(deadline=None)
@given(captions)
def test_no_caption_breaks_the_grammar_and_no_word_is_lost(caption):
    groups = parse_brackets(caption)
    letters = {c for c in caption if not is_mark(c)}
    kept = {c for group in groups for item in group for c in item}
    assert letters <= kept
    assert all(item and item == " ".join(item.split()) for group in groups for item in group)
    assert len(set(groups)) == len(groups)


@settings(deadline=None)
@given(captions, st.booleans(), st.booleans(), st.lists(st.sampled_from([1, 2, 3, 4, 6]), unique=True))
def test_every_present_class_comes_out_when_missing_ones_are_added(caption, background, missing, present):
    found = {class_id for _, class_id in read(caption, present, background, missing)} - {None}
    assert found <= set(present)
    assert not missing or found == set(present)
    read(caption, present, background, missing, read_first_group)


def test_a_group_is_one_entity_of_its_class():
    assert read("(Person, clothes), sky.") == [("person, clothes", 1), ("sky", None)]
    assert read("(truck, car, wheel)") == [("truck, car, wheel", 3)]
    assert read("(cloth, hat)") == [("cloth, hat", None)]


def test_a_group_that_names_several_classes_becomes_their_items():
    assert read("(person, clothes, car), sky") == [("person", 1), ("car", 3), ("sky", None)]


def test_only_present_classes_are_named_and_the_lowest_id_wins():
    assert read("man, cat", present=[2, 6]) == [("man", 6), ("cat", 2)]
    assert read("man", present=[1, 6]) == [("man", 1)]


def test_articles_do_not_hide_a_class():
    assert read("a cat, and the dining table") == [("a cat", 2), ("and the dining table", 4)]


def test_what_is_added():
    assert read("cat", [1, 2, 3], True, True) == [("cat", 2), ("background", None), ("person", 1), ("car", 3)]
    assert read("background", [], True, False) == [("background", None)]
    assert read("", [3], False, True) == [("car", 3)]
    assert read("", [3]) == []


def test_a_missing_class_is_added_even_if_its_word_stands_for_another():
    assert read("man", [1, 6], False, True) == [("man", 1), ("man", 6)]


def test_a_missing_class_without_a_name_is_an_error():
    with pytest.raises(CaptionError, match="class 5 is present"):
        read("cat", [5], False, True)


def test_released_reading_loses_what_follows_a_bracket_that_it_cannot_close():
    assert read("sky, (truck), car, cat", reader=read_first_group) == [("sky", None)]
    assert read("sky, (truck), car, cat") == [("sky", None), ("truck", 3), ("car", 3), ("cat", 2)]


def test_released_reading_covers_classes_by_every_item_that_names_one():
    assert read("(car, table), sky", [3, 4], True, True, read_first_group) == [
        ("car", 3),
        ("table", 4),
        ("sky", None),
        ("background", None),
    ]
    assert Entity("sky") == Entity("sky", None)


def test_missing_classes_follow_in_ascending_order():
    names = [[], *([f"thing{number}"] for number in range(1, 41))]
    for present in ([33, 1, 8], [8, 33, 1]):  # the order of a set of these would be 8, then 33 or 1
        entities = read_brackets(Request("", names, present, False, add_missing=True))
        assert [entity.class_id for entity in entities] == [1, 8, 33]
