"""Numbers beside mIoU: against brute force over pixels, closed forms, and what the bootstrap must satisfy."""

import numpy as np
import pytest
from goca.evaluation import MeanIoU
from goca.evaluation.metrics import ImageCounts, bootstrap, image_iou, metrics
from goca.report.breakdown import confusions, extremes, metric_values
from goca.report.gallery import rank_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

CLASSES, THRESHOLDS = 4, [0.1, -0.1, 0]
NAMES = ["background", "cat", "dog", "fish"]


def counted(images, absent="zero"):
    """A metric that counted the images, and the cells of each."""
    metric = MeanIoU(CLASSES, "offset", THRESHOLDS, ignore_index=255, absent=absent)
    return metric, [metric.update(*each) for each in images]


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (count, 6, 7))
    return [(rng.random((3, 4, 4)), label, [2, 1]) for label in labels]


def brute_force(predictions, labels, absent):
    """The four numbers, pixel by pixel."""
    pairs = [
        (p, t)
        for predicted, label in zip(predictions, labels)
        for p, t in zip(predicted.ravel(), label.ravel())
        if t != 255
    ]
    iou = {}
    for each in range(CLASSES):
        both, either = sum(p == t == each for p, t in pairs), sum(each in (p, t) for p, t in pairs)
        if either or absent == "zero":
            iou[each] = both / either if either else 0
    objects = [value for each, value in iou.items() if each]
    nan = float("nan")
    return {
        "mIoU": np.mean(list(iou.values())) if iou else nan,
        "mIoU_without_background": np.mean(objects) if objects else nan,
        "frequency_weighted_IoU": sum(iou[t] for _, t in pairs) / len(pairs) if pairs else nan,
        "pixel_accuracy": sum(p == t for p, t in pairs) / len(pairs) if pairs else nan,
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, 255])), min_size=1, max_size=3),
    st.integers(0, 99),
    st.sampled_from(["zero", "skip"]),
    st.sampled_from(THRESHOLDS),
)
def test_the_numbers_are_those_of_brute_force(labels, seed, absent, threshold):
    rng = np.random.default_rng(seed)
    images = [(rng.random((3, 3, 4)), label, [3, 1]) for label in labels]
    metric, cells = counted(images, absent)
    expected = brute_force([metric.predict(*each, threshold) for each in images], labels, absent)
    found = metrics(*metric.image_counts(cells, threshold).total(), absent)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert float(found["mIoU"]) == pytest.approx(metric.compute()[threshold], nan_ok=True)


def test_a_perfect_and_a_hopeless_prediction():
    labelled = np.array([6, 3, 0, 1])
    right, wrong = ImageCounts(labelled, labelled, labelled), ImageCounts(0 * labelled, labelled + 5, labelled)
    assert [float(value) for value in metrics(*right, "skip").values()] == pytest.approx([1] * 4)
    assert [float(value) for value in metrics(*wrong, "skip").values()] == [0] * 4
    assert float(metrics(*right, "zero")["mIoU"]) == pytest.approx(3 / 4)


def test_counts_of_images_add_up_to_those_of_the_data_set():
    metric, cells = counted(random_images(5))
    for row, threshold in enumerate(THRESHOLDS):
        counts = metric.image_counts(cells, threshold)
        np.testing.assert_array_equal(counts.total().intersection, metric.intersection[row])
        np.testing.assert_array_equal(counts.total().union, metric.union[row])
        np.testing.assert_array_equal(counts.total().labelled, metric.confusion[row].sum(axis=1))
        alone, own = counted(random_images(5)[3:4], "skip")
        assert image_iou(counts)[3] == pytest.approx(alone.compute()[threshold]) and len(own) == 1


def test_identical_images_give_an_interval_without_width():
    metric, cells = counted(random_images(1))
    counts = metric.image_counts(7 * cells, 0)
    for name, (low, high) in bootstrap(counts, "zero").items():
        assert low == high == pytest.approx(float(metrics(*counts.total(), "zero")[name]))


def test_two_images_one_right_one_wrong_are_drawn_as_coins():
    """Accuracy of n draws from {0, 1} is binomial: its 2.5 and 97.5 percentiles are known."""
    labelled = np.ones((100, 1), np.int64)
    right = (np.arange(100) < 30)[:, None].astype(np.int64)
    low, high = bootstrap(ImageCounts(right, 2 - right, labelled), "zero", resamples=4000)["pixel_accuracy"]
    assert low == pytest.approx(0.3 - 1.96 * np.sqrt(0.21 / 100), abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * np.sqrt(0.21 / 100), abs=0.015)


def test_intervals_are_the_same_again_whatever_the_chunks(monkeypatch):
    metric, cells = counted(random_images(9))
    counts = metric.image_counts(cells, 0)
    first = bootstrap(counts, "skip")
    monkeypatch.setattr("goca.evaluation.metrics.CHUNK", 40)
    assert bootstrap(counts, "skip") == first != bootstrap(counts, "skip", seed=1)
    for name, (low, high) in first.items():
        assert low <= float(metrics(*counts.total(), "skip")[name]) <= high


def test_without_images_everything_is_undefined():
    metric, _ = counted([], "skip")
    empty = metric.image_counts([], 0)
    found = metric_values(metric, THRESHOLDS, empty, empty, (0.1, 0))
    assert found["best"]["mIoU"] == {"value": None, "interval": None}
    assert found["swept"][0]["pixel_accuracy"] is None
    assert extremes(metric, NAMES, [], 0) == {"threshold": 0, "worst": [], "best": []}
    assert confusions(metric, NAMES, 0) == {"threshold": 0, "pairs": [], "classes": [], "pixels": []}


def test_an_image_that_is_void_has_no_rank():
    metric, cells = counted([(np.ones((2, 2, 2)), np.full((3, 3), 255), [1]), *random_images(1)])
    records = [{"image": name, "cells": each.tolist()} for name, each in zip("ab", cells)]
    assert [image_id for _, image_id in rank_images(records, metric, 0)] == ["b"]


def test_confusions_are_the_commonest_first():
    metric, _ = counted([])
    metric.add([[1, 2, 3, 7], [2, 1, 3, 2], [1, 1, 3, 13], [0, 1, 0, 50], [2, 2, 0, 3]])
    found = confusions(metric, NAMES, 0)
    assert [(each["true"], each["predicted"], each["pixels"]) for each in found["pairs"]] == [
        ("cat", "dog", 7),
        ("dog", "background", 3),
        ("dog", "cat", 2),
    ]
    assert found["pairs"][0]["share"] == pytest.approx(7 / 20)
    assert [each["name"] for each in found["classes"]] == ["background", "cat", "dog"]
    assert found["pixels"] == [[50, 0, 0], [0, 13, 7], [3, 2, 0]]


def test_extremes_share_no_image():
    metric, cells = counted(random_images(5))
    records = [{"image": f"i{number}", "cells": each.tolist()} for number, each in enumerate(cells)]
    found = extremes(metric, NAMES, [*records, {"image": "x", "skipped": "torn"}], 0)
    ends = [[each["image"] for each in found[which]] for which in ("worst", "best")]
    assert len(ends[0]) == 3 and len(ends[1]) == 2 and not {*ends[0]} & {*ends[1]}
    ious = [each["iou"] for each in [*found["worst"], *found["best"][::-1]]]
    assert ious == sorted(ious)


def test_one_pixel_of_one_class_is_a_share():
    one = ImageCounts(*(np.array([[0, 1, 0]]) for _ in range(3)))  # one image, one pixel, rightly predicted
    assert image_iou(one).tolist() == [1 / (1 + 1e-8)]
    found = metrics(*one.total(), absent="skip")
    assert found["mIoU"] == found["mIoU_without_background"] == 1 / (1 + 1e-8) and found["pixel_accuracy"] == 1
