"""Presence of classes: closed forms, what a merge and a resumed run must not change, and what is refused."""

import math

import numpy as np
import pytest
from goca.evaluation import MetricError, Presence, Word
from goca.evaluation.presence import LEVELS, area_under_curve, as_record, histograms, intervals, summary, words_of
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["background", "cat", "dog", "fish", "bird"]


def counted(*images):
    presence = Presence(len(NAMES))
    for words, present in images:
        presence.update([Word(*word) for word in words], present)
    return presence


def test_precision_and_recall_of_a_few_words():
    """Taken: cat (right), dog (wrong). Present: cat, fish (refused), bird (never looked for)."""
    presence = counted(([(1, 0.9, True), (2, 0.8, True), (3, 0.3, False)], [1, 3, 4]))
    assert presence.precision() == 1 / 2 and presence.recall() == 1 / 3
    assert presence.auc() == 1 / 2  # pairs: cat over dog, fish under dog
    assert presence.outcomes[4].tolist() == [[0, 0], [1, 0]] and presence.offered.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("absent", "present", "area"),
    [
        ([0.1, 0.2], [0.3, 0.4], 1),
        ([0.3, 0.4], [0.1, 0.2], 0),
        ([0.5, 0.5], [0.5], 1 / 2),
        ([0.1, 0.5], [0.5, 0.9], 7 / 8),  # of four pairs three are won, one is a tie
        ([0.2], [], math.nan),
        ([], [0.2], math.nan),
    ],
)
def test_auc_in_closed_form(absent, present, area):
    words = [([(1, score, True)], []) for score in absent] + [([(1, score, True)], [1]) for score in present]
    assert counted(*words).auc() == pytest.approx(area, nan_ok=True)


scores = st.lists(st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]), min_size=1, max_size=12)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_won(absent, present):
    won = [(high > low) + (high == low) / 2 for high in present for low in absent]
    levels = sorted({*absent, *present})
    counts = [np.array([each.count(level) for level in levels]) for each in (absent, present)]
    assert area_under_curve(*counts) == pytest.approx(sum(won) / len(won))


image = st.tuples(
    st.dictionaries(st.integers(1, 4), st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.booleans())),
    st.sets(st.integers(1, 4)),
)


@given(st.lists(image, max_size=8), st.integers(0, 8))
def test_merged_counts_are_those_of_all_images(images, cut):
    images = [([(each, *of) for each, of in words.items()], present) for words, present in images]
    whole, merged = counted(*images), counted(*images[:cut]).merge(counted(*images[cut:]))
    for name in ("precision", "recall", "auc"):
        assert getattr(whole, name)() == pytest.approx(getattr(merged, name)(), nan_ok=True)
    assert (whole.outcomes == merged.outcomes).all() and (whole.offered == merged.offered).all()
    assert whole.reliability() == merged.reliability()


@given(st.lists(image, min_size=1, max_size=8))
def test_a_record_keeps_what_is_counted_and_intervals_hold_the_value(images):
    words = [[Word(each, *of) for each, of in offered.items()] for offered, _ in images]
    records = [as_record(own, sorted(present)) for own, (_, present) in zip(words, images)]
    found, whole = summary(records, NAMES), counted(*zip(words, (present for _, present in images)))
    for name in ("precision", "recall", "auc"):
        value, interval = found[name]["value"], found[name]["interval"]
        assert value == pytest.approx(getattr(whole, name)()) if value is not None else True
        assert (interval is None) <= (value is None)
        assert interval is None or interval[0] <= interval[1]
    assert [[w.class_id for w in words_of(each)] for each in records] == [[w.class_id for w in own] for own in words]
    assert sum(each["right"] for each in found["per_class"]) == found["words"]["right"]


def test_the_same_image_again_and_again_has_no_spread():
    record = as_record([Word(1, 0.9, True), Word(2, 0.4, True), Word(3, 0.1, False)], [1, 3])
    assert intervals([record] * 5) == {"precision": [0.5, 0.5], "recall": [0.5, 0.5], "auc": [0.5, 0.5]}


def test_reliability_of_a_calibrated_score_lies_on_the_diagonal():
    words = [([(1, 0.25, True)], [1] if number == 0 else []) for number in range(4)]
    words += [([(2, 1.0, True)], [2])]
    bins = counted(*words).reliability()
    assert [(each["words"], each["mean_presence"], each["present"]) for each in bins if each["words"]] == [
        (4, 0.25, 0.25),
        (1, 1.0, 1.0),
    ]


def test_without_a_score_there_is_no_auc_and_without_words_nothing():
    found = summary([as_record([Word(1, None, True)], [1, 2])], NAMES)
    assert found["precision"]["value"] == 1 and found["recall"]["value"] == 0.5
    assert found["auc"] == {"value": None, "interval": None} and found["reliability"] is None
    assert summary([{"image": "a", "cells": []}], NAMES) is None


@pytest.mark.parametrize(
    ("words", "present", "message"),
    [
        ([(1, 1.5, True)], [1], "from 0 to 1"),
        ([(1, math.nan, True)], [1], "from 0 to 1"),
        ([(1, 0.5, True), (1, 0.4, True)], [1], "looked for once"),
        ([(5, 0.5, True)], [1], "class id 5"),
        ([(1, 0.5, True)], [0], "class id 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(words, present, message):
    with pytest.raises(MetricError, match=message):
        counted((words, present))
    with pytest.raises(MetricError, match="5 and of 3 classes"):
        Presence(5).merge(Presence(3))


def test_many_presences_are_told_apart_well_enough_for_an_interval():
    draw = np.random.default_rng(0)

    def score(n, image):
        return float(draw.beta(3 if n == image % 4 else 1, 2))

    words = [[Word(1 + n, score(n, image), True) for n in range(4)] for image in range(900)]
    records = [as_record(own, [1 + image % 4]) for image, own in enumerate(words)]
    found = summary(records, NAMES)["auc"]
    low, high = found["interval"]
    absent, present = histograms(
        [(w.presence, n, w.class_id in r["present"]) for n, r in enumerate(records) for w in words_of(r)], len(records)
    )
    assert absent.shape == (900, LEVELS) and absent.sum() == 2700 and present.sum() == 900
    assert area_under_curve(absent.sum(0), present.sum(0)) == pytest.approx(found["value"], abs=1e-3)
    assert low < found["value"] < high and 0.01 < high - low < 0.06
