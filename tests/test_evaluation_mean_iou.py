"""Counts: against a plain loop with one argmax per threshold, against torch's upsampling, and against the goldens."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from goca.evaluation import MeanIoU, MetricError
from goca.evaluation.decision import BACKGROUND_RULES
from goca.evaluation.upsample import upsample
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def literal_counts(images, num_classes, background, thresholds, ignore_index):
    """One argmax over all class ids per image and threshold, as the equations say it; [thresholds, classes] twice."""
    rules = {
        "vanilla": lambda m, t: torch.full_like(m, t),
        "max": lambda m, t: m.clamp(min=t),
        "exact": lambda m, t: m,
        "avg": lambda m, t: (t + m) / 2,
        "offset": lambda m, t: t + m,
    }
    intersection, union = np.zeros((2, len(thresholds), num_classes), np.int64)
    for scores, label, class_ids in images:
        maps = torch.from_numpy(scores)[None]
        maps = torch.nn.functional.interpolate(maps, label.shape, mode="bilinear", align_corners=False)[0]
        for i, threshold in enumerate(thresholds):
            full = torch.zeros(num_classes, *label.shape)
            for index, class_id in enumerate(class_ids):
                full[class_id] = maps[index]
            full[0] = rules[background](maps[-1], threshold)
            predicted = full.argmax(dim=0).numpy()
            kept = label != ignore_index
            for class_id in range(num_classes):
                a, b = (predicted == class_id) & kept, (label == class_id) & kept
                intersection[i, class_id] += (a & b).sum()
                union[i, class_id] += (a | b).sum()
    return intersection, union


COARSE = [-1.0, -0.5, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, float("nan")]  # few values, so that ties are common


@st.composite
def image(draw, num_classes=6, values=COARSE, ignore=True):
    class_ids = draw(st.lists(st.integers(1, num_classes - 1), unique=True, max_size=num_classes - 1))
    grid = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = draw(st.one_of(st.just(grid), st.tuples(st.integers(1, 9), st.integers(1, 150))))
    scores = draw(arrays(np.float32, (len(class_ids) + 1, *grid), elements=st.sampled_from(np.float32(values))))
    labels = [*range(num_classes), *([255] if ignore else [])]
    label = draw(arrays(np.uint8, size, elements=st.sampled_from(labels)))
    return scores, label, class_ids


@settings(max_examples=150, deadline=None)
@given(
    st.lists(image(), min_size=1, max_size=2),
    st.sampled_from(sorted(BACKGROUND_RULES)),
    st.lists(st.sampled_from([-0.5, -0.1, 0, 0.1, 0.25, 0.5]), min_size=1, unique=True),
)
def test_one_pass_counts_what_one_argmax_per_threshold_counts(images, background, thresholds):
    metric = MeanIoU(6, background, thresholds, ignore_index=255)
    for each in images:
        metric.update(*each)
    intersection, union = literal_counts(images, 6, background, thresholds, 255)
    np.testing.assert_array_equal(metric.intersection, intersection)
    np.testing.assert_array_equal(metric.union, union)


@pytest.mark.parametrize("background", BACKGROUND_RULES)
def test_a_photograph_sized_image_with_many_classes(background):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(9, 32, 32)).astype(np.float32)
    label = rng.integers(0, 21, size=(188, 250)).astype(np.uint8)
    each = (scores, label, [3, 1, 20, 7, 8, 12, 2, 15])
    thresholds = [t / 10 for t in range(-4, 5)]
    metric = MeanIoU(21, background, thresholds)
    metric.update(*each)
    intersection, union = literal_counts([each], 21, background, thresholds, None)
    np.testing.assert_array_equal(metric.intersection, intersection)
    np.testing.assert_array_equal(metric.union, union)


@pytest.fixture(autouse=True)
def one_thread():
    """torch's own upsampling shares its work over threads by planes, and its last bit depends on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("maps", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(64, 64), (40, 28), (16, 16), (90, 120), (16, 300), (7, 200), (375, 500)])
def test_upsampling_equals_torch_to_the_last_bit(maps, size):
    grid = np.random.default_rng(0).random((maps, 16, 16), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(grid)[None], size, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(upsample(grid, *size), expected, atol=1e-6)
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # elsewhere torch may not fuse
        np.testing.assert_array_equal(upsample(grid, *size), expected)


def golden_cases(goldens):
    folder = goldens / "set3_evaluation"
    about = json.loads((folder / "evaluation.json").read_text())
    return about, np.load(folder / "evaluation.npz")


@pytest.mark.parametrize("case", ["c21/vanilla", "c21/max", "c21/exact", "c21/avg", "c21/offset"])
def test_recorded_counts_are_met_to_the_integer(goldens, case):
    about, recorded = golden_cases(goldens)
    setting = about["cases"][case]
    metric = MeanIoU(recorded[f"{case}/union"].shape[1], setting["method"], setting["thresholds"])
    for name in setting["images"]:
        metric.update(recorded[f"{name}/pred"], recorded[f"{name}/label"], about["images"][name])
    np.testing.assert_array_equal(metric.intersection, recorded[f"{case}/intersection"])
    np.testing.assert_array_equal(metric.union, recorded[f"{case}/union"])
    assert metric.compute() == dict(zip(setting["thresholds"], setting["miou"]))


def test_descending_thresholds_do_not_accumulate(goldens):
    about, recorded = golden_cases(goldens)
    metric = MeanIoU(21, "max", [0.7, 0.5, 0.3])
    for name in about["cases"]["c21/max"]["images"]:
        metric.update(recorded[f"{name}/pred"], recorded[f"{name}/label"], about["images"][name])
    np.testing.assert_array_equal(metric.intersection, recorded["c21/max/intersection"][::-1])
    np.testing.assert_array_equal(metric.union, recorded["c21/max/union"][::-1])


def test_closed_form_of_two_halves():
    scores = np.zeros((2, 2, 2), np.float32)
    scores[0, :, 0], scores[1, :, 1] = 1, 1  # class 1 on the left, background on the right
    metric = MeanIoU(3, "offset", [0, 2])
    metric.update(scores, np.array([[1, 1], [0, 0]]), [1])
    assert metric.intersection.tolist() == [[1, 1, 0], [2, 0, 0]]
    assert metric.union.tolist() == [[3, 3, 0], [4, 2, 0]]
    assert metric.compute()[0] == pytest.approx(2 / 9)
    assert metric.confusion[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_absent_classes_are_zero_or_left_out():
    label, scores = np.array([[0, 1]]), np.array([[[0, 1]], [[1, 0]]], np.float32)
    zero, skip = (MeanIoU(4, "exact", [0], absent=rule) for rule in ("zero", "skip"))
    zero.update(scores, label, [1]), skip.update(scores, label, [1])
    assert zero.compute()[0] == pytest.approx(0.5) and skip.compute()[0] == pytest.approx(1)
    assert zero.per_class()[0, 2] == 0 and np.isnan(skip.per_class()[0, 2])


def test_an_absent_class_wins_where_everything_else_is_negative():
    scores = np.full((2, 1, 1), -1, np.float32)
    metric = MeanIoU(4, "exact", [0])
    metric.update(scores, np.array([[2]]), [1])
    assert metric.confusion[0, 2].tolist() == [0, 0, 1, 0]  # ids 2 and 3 score 0; the lowest takes it


def test_merged_halves_and_stored_cells_equal_the_whole():
    rng = np.random.default_rng(1)
    whole, halves = MeanIoU(5, "offset", [0, -0.2]), [MeanIoU(5, "offset", [0, -0.2]) for _ in range(2)]
    stored = MeanIoU(5, "offset", [0, -0.2])
    for i in range(4):
        each = rng.random((3, 8, 8), dtype=np.float32), rng.integers(0, 5, (9, 7)), [4, 2]
        halves[i % 2].update(*each)
        stored.add(json.loads(json.dumps(whole.update(*each).tolist())))
    merged = halves[0].merge(halves[1])
    for metric in (merged, stored):
        np.testing.assert_array_equal(metric.intersection, whole.intersection)
        np.testing.assert_array_equal(metric.union, whole.union)
    with pytest.raises(MetricError, match="different settings"):
        whole.merge(MeanIoU(5, "max", [0]))
    for beyond in ([5, 0, 0, 1], [0, 5, 0, 1], [0, 0, 3, 1], [0, 0, -1, 1]):  # 5 classes, wins at 0 to 2 thresholds
        with pytest.raises(MetricError, match="outside 5 classes and 2 thresholds"):
            whole.add([beyond])


def test_tensors_of_any_precision_count_like_arrays():
    scores = torch.tensor([[[0.25, 1.0]], [[0.5, 0.5]]])
    label = torch.tensor([[0, 1]])
    results = []
    for cast in (scores, scores.half(), scores.bfloat16(), scores.double(), scores.numpy()):
        metric = MeanIoU(2, "offset", [0])
        metric.update(cast, label, torch.tensor([1]))
        results.append(metric.compute())
    assert results == [{0: pytest.approx(1.0)}] * 5


def test_everything_background():
    metric = MeanIoU(3, "offset", [-1, 0], ignore_index=255)
    metric.update_background(np.array([[0, 2, 255]], np.uint8))
    assert metric.intersection.tolist() == [[1, 0, 0]] * 2 and metric.union.tolist() == [[2, 0, 1]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((3, 4, 4))}, r"shape \[3, 4, 4\]; 1 class ids need \[2, g, g\]"),
        ({"scores": np.zeros((2, 0, 4))}, "shape"),
        ({"label": np.full((4, 4), 255)}, r"label holds \[255\]"),
        ({"label": np.full((4, 4), -3)}, r"label holds \[-3\]"),
        ({"label": np.zeros((4, 4))}, "whole numbers"),
        ({"label": np.zeros(4, int)}, "whole numbers"),
        ({"class_ids": [0]}, "class ids"),
        ({"class_ids": [21]}, "class ids"),
        ({"class_ids": [2, 2], "scores": np.zeros((3, 4, 4))}, "occurs once"),
    ],
)
def test_what_cannot_be_counted_is_refused(change, message):
    given_ = {"scores": np.zeros((2, 4, 4)), "label": np.zeros((4, 4), np.uint8), "class_ids": [1]} | change
    metric = MeanIoU(21, "offset", [0])
    with pytest.raises(MetricError, match=message):
        metric.update(**given_)
    assert metric.union.sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": "softmax"}, "expected one of: vanilla, max, exact, avg, offset"),
        ({"absent": "one"}, "zero, skip"),
        ({"thresholds": []}, "different finite numbers"),
        ({"thresholds": [0.1, 0.1]}, "different finite numbers"),
        ({"thresholds": [float("nan")]}, "different finite numbers"),
        ({"num_classes": 1}, "make 2"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(MetricError, match=message):
        MeanIoU(**({"num_classes": 3} | change))


def test_scoring_and_data_load_without_torch_in_under_a_second():
    code = (
        "import time, sys; start = time.process_time(); import goca.evaluation, goca.datasets;"
        "seconds = time.process_time() - start; heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules);"
        "sys.exit(f'{seconds:.2f} s, {heavy}' if heavy or seconds > 1 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
