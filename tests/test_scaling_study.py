"""The scaling study, on models that know nothing: every number is there, nothing is measured twice."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from goca.evaluation import MeanIoU
from goca.evaluation.presence import auc_of_scores
from goca.prompts import PromptAnnotation

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import scaling_study  # noqa: E402
from embedded.mini_family import KINDS  # noqa: E402
from embedded.mini_model import build_vae  # noqa: E402
from scaling.measures import Sizes  # noqa: E402
from scaling.points import CHECKPOINTS, Point, find_points  # noqa: E402
from scaling.segmentation import (  # noqa: E402
    ACTING,
    PICKED,
    Bench,
    cells_of,
    measure_segmentation,
    token_kinds,
)
from scaling.store import Store, digest  # noqa: E402
from scaling.summary import (  # noqa: E402
    DRAWS,
    Measured,
    correlations,
    miou,
    segmentation_values,
    spearman,
    switch_effects,
)
from study_scenes import PARTS  # noqa: E402
from train_mini import export  # noqa: E402

TINY = Sizes(images=3, chosen_on=2, seeds=2, timesteps=(200,), switched=2, generated=3, steps=2, real=16, network=32)


def save_random(kind: str, folder: Path) -> Point:
    torch.manual_seed(0)
    parts = KINDS[kind].parts(folder.parent / "parts")
    vae = build_vae()
    vae.register_to_config(shift_factor=0.0)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    export(folder, KINDS[kind].family.assemble(parts, vae))
    return Point(kind, folder.name, folder)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    root = tmp_path_factory.mktemp("scaling")
    points = [
        save_random("mini-sd-small", root / "runs/mini-sd-small/late"),
        save_random("mini-flux", root / "runs/mini-flux/early"),
    ]
    (root / "out").mkdir()
    scaling_study.report(points, TINY, root / "out")
    return root, points


def test_every_point_has_every_measure_with_an_interval(studied):
    root, points = studied
    rows = list(csv.DictReader((root / "out/results.csv").open()))
    whole = json.loads((root / "out/results.json").read_text())
    assert len(rows) == len(whole["rows"])
    for point in points:
        for world in ("scenes", "scenes-hard"):
            found = {row["measure"]: row for row in rows if (row["point"], row["world"]) == (point.name, world)}
            expected = {f"mIoU, {protocol}, {part}" for protocol in ("paper", "released") for part in PARTS}
            for protocol in ("paper", "released"):
                expected |= {f"IoU of the background, {protocol}, {method}" for method in ("vanilla", "GoCA")}
            expected |= {"words found", "just the words", "Frechet distance", "validation loss"}
            if point.kind == "mini-sd-small":
                expected |= {f"mIoU, {protocol}, {PICKED}" for protocol in ("paper", "released")}
            assert set(found) == expected
            assert all(float(row["low"]) <= float(row["high"]) for row in found.values())
            assert whole["chosen"][point.name][f"{world}/paper"]["t"] == 200
    assert (root / "out/scaling.png").stat().st_size > 0
    tables = (root / "out/tables.md").read_text()
    assert "object: large" in tables
    for point in points:
        line = next(line for line in tables.splitlines() if line.startswith(f"| {point.name} |"))
        found = next(row for row in rows if row["point"] == point.name and row["measure"] == "mIoU, paper, GoCA")
        value, low, high = (float(found[key]) for key in ("value", "low", "high"))
        assert f"| {value:.1f} [{low:.1f}, {high:.1f}] |" in line


def test_attention_shares_are_parts_of_one_and_layer_weights_sum_to_one(studied):
    root, points = studied
    chosen = json.loads((root / "out/results.json").read_text())["chosen"]
    for point in points:
        layers = chosen[point.name]["scenes/paper"]["layers"]
        assert sum(layer["weight"] for layer in layers) == pytest.approx(1, abs=1e-3)
        for layer in layers:
            share = sum(value for name, value in layer.items() if name not in ("layer", "side", "weight"))
            assert share <= 1 + 1e-3
            if point.kind == "mini-sd-small":  # a joint softmax also looks at the image
                assert share == pytest.approx(1, abs=1e-3)


def test_places_are_told_apart_or_not(studied):
    root, points = studied
    chosen = json.loads((root / "out/results.json").read_text())["chosen"]
    for point in points:
        places = chosen[point.name]["scenes/paper"]["places"]
        assert set(places) == {"word", "content", "share"} and all(0 <= value <= 1 for value in places.values())
    assert auc_of_scores(np.array([1, 2]), np.array([3, 4])) == 1 and auc_of_scores(np.ones(5), np.ones(3)) == 0.5
    mask = np.zeros((64, 64), bool)
    mask[:6, :4] = True  # one cell whole, one half
    assert np.argwhere(cells_of(mask, 16)).tolist() == [[0, 0], [1, 0]]


def test_what_was_measured_is_not_measured_again(studied, monkeypatch):
    root, points = studied
    before = (root / "out/results.json").read_text()
    monkeypatch.setattr(Bench, "cells", lambda *_: pytest.fail("measured twice"))
    monkeypatch.setattr("scaling.measures.generate", lambda *_: pytest.fail("measured twice"))
    scaling_study.report(points, TINY, root / "out")
    assert (root / "out/results.json").read_text() == before


def test_other_weights_are_another_point(studied, tmp_path):
    point = save_random("mini-sd-small", tmp_path / "late")
    same = digest(point)
    file = point.folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert digest(point) != same


def test_larger_sizes_add_to_what_there_is(studied, monkeypatch):
    root, points = studied
    store, measured_now, measure = Store.of(points[1], root / "out"), set(), Bench.cells

    def watched(self, split, index, t, seed):
        measured_now.add((split, index, seed))
        return measure(self, split, index, t, seed)

    monkeypatch.setattr(Bench, "cells", watched)
    before, _ = measure_segmentation(points[1], TINY, store)
    after, _ = measure_segmentation(points[1], replace(TINY, seeds=3), store)
    assert measured_now == {("fresh", index, 2) for index in range(TINY.images)}
    for name, counts in before.items():
        assert np.array_equal(after[name][:, :2], counts) and after[name].shape[1] == 3


def test_of_a_finished_model_each_switch_is_turned(studied):
    root, (finished, _) = studied
    effects = json.loads((root / "out/results.json").read_text())["switches"]
    assert set(effects) == {finished.name} and set(effects[finished.name]) == set(finished.worlds)
    for rows in effects[finished.name].values():
        assert [row["switch, as released"] for row in rows] == list(ACTING)
        assert all(row[method][1] <= row[method][2] for row in rows for method in ("vanilla", "GoCA"))
    assert any(row["GoCA"][0] for rows in effects[finished.name].values() for row in rows)


def test_a_switch_is_compared_on_the_same_images():
    random = np.random.default_rng(0)
    union = random.integers(50, 60, (1, 1, 40, 17))
    arrays = {}
    for variant in ("paper", *ACTING):
        share = random.random((1, 1, 40, 17)) if variant == "paper" else np.full((1, 1, 40, 17), 0.5)
        for method in ("vanilla", "GoCA"):
            arrays[f"scenes/{variant}/{method}"] = np.concatenate([(union * share).astype(int), union])
    arrays["scenes/noise/GoCA"] = arrays["scenes/paper/GoCA"]
    found = {row["switch, as released"]: row for row in switch_effects(arrays, "scenes")}
    assert found["noise"]["GoCA"] == [0, 0, 0]
    value, low, high = found["posterior"]["GoCA"]
    assert low < value < high and value == pytest.approx(
        100 * (miou(arrays["scenes/posterior/GoCA"], "skip") - miou(arrays["scenes/paper/GoCA"], "skip"))
    )


@pytest.mark.parametrize(("protocol", "expected"), [("paper", 50.0), ("released", 25.0)])
def test_a_class_that_never_occurs_counts_as_the_protocol_says(protocol, expected):
    counts = np.zeros((2, 1, 4, 2), np.int32)
    counts[0, :, :, 0], counts[1, :, :, 0] = 1, 2
    (*_, value, draws), _ = segmentation_values({f"scenes/{protocol}/GoCA": counts})
    assert value == pytest.approx(expected, abs=1e-3) and draws == pytest.approx(expected, abs=1e-3)


def test_checkpoints_are_found_in_their_order(studied):
    root, points = studied
    found = find_points(root / "runs", ["mini-sd-small", "mini-flux", "mini-pixart"])
    assert [point.name for point in found if point.folder.is_relative_to(root)] == [point.name for point in points]
    assert {point.checkpoint for point in found} <= set(CHECKPOINTS)
    assert [point.name for point in find_points(root / "nothing", ["mini-sd"])] == ["mini-sd-late"]  # it ships


def measured(point, measure, value):
    return Measured(point, "mini-sd", "late", "scenes", measure, value, np.full(DRAWS, value))


def test_rank_correlation_is_spearmans():
    assert spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_points_on_a_rising_line_correlate_fully():
    values = []
    for i in range(6):
        numbers = {"words found": i, "Frechet distance": 10 - i, "mIoU, paper, vanilla": -i, "mIoU, paper, GoCA": i**2}
        values += [measured(f"p{i}", measure, value) for measure, value in numbers.items()]
    found = {(row["power"], row["method"]): row for row in correlations(values)}
    for power in ("words found", "Frechet distance"):  # a small distance is much power
        assert found[power, "vanilla"]["rho"] == pytest.approx(-1)
        assert found[power, "GoCA"]["rho"] == pytest.approx(1) == pytest.approx(found[power, "GoCA"]["low"])
    assert not correlations(values[:8])  # two points are no trend


def test_counts_by_image_give_the_metrics_own_miou():
    random = np.random.default_rng(0)
    metric, counts = MeanIoU(4, thresholds=[0.0]), np.zeros((2, 1, 5, 4), np.int32)
    for image in range(5):
        one = metric.empty_copy()
        one.update(random.random((3, 8, 8)), random.integers(0, 4, (8, 8)), [1, 3])
        metric.merge(one)
        counts[:, 0, image] = one.intersection[0], one.union[0]
    assert miou(counts, "zero") == pytest.approx(metric.compute()[0.0])
    (world, name, value, draws), (_, what, background, _) = segmentation_values({"scenes/released/GoCA": counts})
    assert (world, name) == ("scenes", "mIoU, released, GoCA") and value == pytest.approx(100 * metric.compute()[0.0])
    first = 100 * metric.intersection[0, 0] / metric.union[0, 0]
    assert what == "IoU of the background, released, GoCA" and background == pytest.approx(first)
    assert draws.shape == (DRAWS,) and np.percentile(draws, 1) <= value <= np.percentile(draws, 99)


def test_each_token_is_of_one_kind():
    annotation = PromptAnnotation("a cat, sky", [2, 4], {1: [2]}, [0], [[4]])
    kinds = token_kinds(annotation, 8)
    assert kinds["commas"] == [1, 3] and kinds["after the text"] == [5, 6, 7]
    assert sorted(token for tokens in kinds.values() for token in tokens) == list(range(8))
