"""Deciding pixels quickly changes nothing: close calls, empty maps, NaN, one class, and images one pixel wide."""

import numpy as np
import pytest
from goca.evaluation import MeanIoU
from goca.evaluation.decision import BACKGROUND_RULES, decide
from goca.evaluation.upsample import ERROR, Bilinear, upsample
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_mean_iou import literal_counts

THRESHOLDS = [t / 10 for t in range(-4, 5)]


def agrees(scores, label, class_ids, num_classes=6, background="offset"):
    metric = MeanIoU(num_classes, background, THRESHOLDS, ignore_index=255)
    metric.update(scores, label, class_ids)
    intersection, union = literal_counts([(scores, label, class_ids)], num_classes, background, THRESHOLDS, 255)
    np.testing.assert_array_equal(metric.intersection, intersection)
    np.testing.assert_array_equal(metric.union, union)
    return metric


def labels(size, num_classes=6):
    return np.random.default_rng(5).integers(0, num_classes, size).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1), st.integers(60, 160), st.integers(69, 160))
def test_quick_upsampling_keeps_to_its_error(n, scale, seed, height, width):
    maps = np.random.default_rng(seed).normal(0, scale, (n, 16, 12)).astype(np.float32)
    quick = np.concatenate([b for _, b in Bilinear.between(n, (16, 12), height, width).quickly(maps)], axis=1)
    assert np.abs(quick - upsample(maps, height, width)).max() <= ERROR * np.abs(maps).max()


@pytest.mark.parametrize("background", BACKGROUND_RULES)
def test_maps_that_are_a_hair_apart(background):
    rng = np.random.default_rng(0)
    first = rng.random((20, 20), dtype=np.float32)
    second = np.nextafter(first, rng.choice(np.float32([0, 1, 9]), first.shape).astype(np.float32))
    scores = np.stack([first, second, first, first - np.float32(0.1)])  # thresholds are close calls as well
    agrees(scores, labels((150, 170)), [2, 1, 5], background=background)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e38, -1e-40])
@pytest.mark.parametrize("background", BACKGROUND_RULES)
def test_maps_of_one_value(value, background):
    agrees(np.full((3, 5, 5), value, np.float32), labels((70, 90)), [3, 1], background=background)


def test_maps_of_zeros_are_a_tie_that_the_lowest_class_wins_where_the_background_is_below_zero():
    metric = MeanIoU(4, "offset", [-0.1, 0])
    metric.update(np.zeros((2, 4, 4)), np.full((5, 5), 2, np.uint8), [2])
    assert metric.confusion[:, 2].tolist() == [[0, 25, 0, 0], [25, 0, 0, 0]]


def test_a_map_of_nan_wins_everywhere():
    metric = MeanIoU(4, "offset", [0.4])
    metric.update(np.stack([np.full((4, 4), np.nan), np.ones((4, 4)), np.zeros((4, 4))]), labels((80, 80), 4), [3, 1])
    assert metric.confusion[0].sum(axis=0).tolist() == [0, 0, 0, 80 * 80]


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (1, 64)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (9, 1), (8, 8)])
def test_images_and_grids_one_pixel_wide(size, grid):
    scores = np.random.default_rng(1).random((4, *grid), dtype=np.float32)
    agrees(scores, labels(size), [1, 4, 2])


def test_one_class_only():
    scores = np.random.default_rng(2).random((2, 8, 8), dtype=np.float32)
    agrees(scores, labels((90, 100), 2), [1], num_classes=2)
    agrees(scores[1:], labels((90, 100), 2), [], num_classes=2)


def test_more_classes_than_a_byte_counts():
    scores = np.random.default_rng(3).random((301, 4, 4), dtype=np.float32)
    best, wins, ids = decide(scores, (70, 70), range(1, 301), 301, "offset", THRESHOLDS)
    full = upsample(scores, 70, 70)
    np.testing.assert_array_equal(ids[best], 1 + full[:-1].argmax(axis=0))
    margin = full[:-1].max(axis=0) > np.float32(THRESHOLDS)[:, None, None] + full[-1]
    np.testing.assert_array_equal(wins, margin.sum(axis=0))


@pytest.mark.parametrize("width", range(1, 40))
def test_a_background_that_rounds_to_either_side_of_a_threshold(width):
    scores = np.stack([np.full((1, 1), -1, np.float32), np.full((1, 1), 0.1, np.float32)])
    agrees(scores, np.zeros((1, width), np.uint8), [1], background="avg")
