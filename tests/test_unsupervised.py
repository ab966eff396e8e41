"""Segmentation without a prompt: regions from self-attention, matched to the labels image by image."""

import json

import commands
import numpy as np
import pytest
import torch
from commands import values
from goca.benchmark import Benchmark
from goca.config import ConfigError
from goca.evaluation import MetricError
from goca.evaluation.matched_iou import MatchedIoU
from goca.prompts import PromptAnnotation
from goca.refine import hungarian_match, merge_proposals
from goca.segmenter import Segmenter
from goca.variants.merging import Merging
from goca.variants.regions import RegionFinder
from PIL import Image
from tiny import SD_CONFIG


@pytest.fixture(scope="module")
def finder(tiny_sd):
    return RegionFinder.from_pretrained(str(tiny_sd), SD_CONFIG, device="cpu")


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (30, 44, 3), np.uint8)) for _ in range(2)]


def test_regions_are_the_merged_space_map_of_an_empty_prompt(finder, pictures):
    both = finder.regions(pictures, image_ids=["a", "b"])
    assert len(both) == 2
    for picture, name, found in zip(pictures, "ab", both):
        capture = finder.capture(picture, PromptAnnotation(""), image_id=name)
        assert not capture.token_maps and not capture.similarities
        torch.testing.assert_close(found, merge_proposals(capture.space_map()[0], (8, 8)), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(len(found)))
        whole = Segmenter(finder.extractor, finder.config).capture(picture, PromptAnnotation(""), image_id=name)
        torch.testing.assert_close(capture.space_map(), whole.space_map(), rtol=0, atol=1e-5)
    assert len(finder.regions(pictures[:1], Merging(threshold=1e9))[0]) == 1
    assert len(finder.regions(pictures[:1], Merging(threshold=0, stride=2))[0]) == 16


def test_without_self_layers_there_is_nothing_to_merge(tiny_sd, pictures):
    finder = RegionFinder.from_pretrained(str(tiny_sd), {**SD_CONFIG, "self_layers": [], "refine": []}, device="cpu")
    with pytest.raises(ConfigError, match="self_layers"):
        finder.regions(pictures)


# ---- counting


def regions(clusters):
    """Maps whose argmax is these clusters."""
    return torch.nn.functional.one_hot(torch.tensor(clusters)).permute(2, 0, 1).float()


def test_counts_by_hand():
    metric = MatchedIoU(3, ignore_index=255, absent="skip")
    label = np.array([[1, 1, 1, 1], [1, 1, 2, 2], [255, 255, 2, 2]], np.uint8)
    clusters = [[0, 0, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2]]  # the second overlaps class 1 only, which the first takes
    cells = metric.update(regions(clusters), label)
    assert sorted(map(tuple, cells.tolist())) == [(1, 1, 1, 4), (1, 3, 1, 2), (2, 2, 1, 4)]
    assert metric.intersection.tolist() == [[0, 4, 4]]
    assert metric.union.tolist() == [[0, 6, 4]]
    assert metric.pixel_accuracy() == pytest.approx(8 / 10)
    assert metric.compute() == {0.0: pytest.approx((4 / 6 + 1) / 2)}
    assert metric.confusion[0].sum(axis=1).tolist() == [0, 6, 4]
    again = metric.empty_copy()
    again.add(cells)
    assert again.compute() == metric.compute()
    assert again.merge(metric).union.tolist() == [[0, 12, 8]]


def test_each_image_is_matched_on_its_own():
    metric, label = MatchedIoU(2), np.array([[0, 0, 1]], np.uint8)
    metric.update(regions([[0, 0, 1]]), label)
    metric.update(regions([[1, 1, 0]]), label)
    assert metric.pixel_accuracy() == 1
    assert metric.compute()[0.0] == pytest.approx(1)


def test_the_counts_are_those_of_the_matched_map():
    random = np.random.default_rng(1)
    label = random.integers(0, 4, (9, 9)).astype(np.uint8)
    clusters = random.integers(0, 6, (9, 9))
    metric = MatchedIoU(4)
    metric.update(regions(clusters), label)
    matched = hungarian_match(clusters, label, 4)
    assert metric.pixel_accuracy() == pytest.approx((matched == label).mean())
    for k in range(4):
        union = ((matched == k) | (label == k)).sum()
        assert metric.per_class()[0, k] == pytest.approx(((matched == k) & (label == k)).sum() / union)


def test_what_cannot_be_counted():
    metric = MatchedIoU(2)
    for bad in (torch.zeros(2, 2), torch.zeros(0, 2, 2), torch.full((1, 2, 2), torch.nan)):
        with pytest.raises(MetricError, match="regions"):
            metric.update(bad, np.zeros((2, 2), np.uint8))
    with pytest.raises(MetricError):
        metric.add([[0, 3, 1, 1]])
    assert np.isnan(MatchedIoU(2, absent="skip").pixel_accuracy())


# ---- as a run

RUN = ["task=unsupervised", "model=mini-sd", "dataset=scenes", "device=cpu"]


def test_a_run_goes_on_and_needs_no_captions(tmp_path, monkeypatch, capsys):
    given = [*RUN, "dataset.labels=null", "run_dir=run"]
    assert commands.main(monkeypatch, capsys, tmp_path, *given, "limit=2").code == 0
    before = (tmp_path / "run/counts.jsonl").read_bytes()
    done = commands.main(monkeypatch, capsys, tmp_path, *given, "limit=4", "batch_size=2")
    assert done.code == 0 and "pixel accuracy" in done.out and "matched to the classes" in done.out
    assert (tmp_path / "run/counts.jsonl").read_bytes().startswith(before)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["task"] == "unsupervised" and results["images"]["counted"] == 4
    assert 0.2 < results["pixel_accuracy"] < 1 and 0.1 < results["mIoU"]["best"]["mIoU"] < 1
    assert list(results["oracle"]) == ["matching"] and not results["warnings"]["no_class"]
    text = (tmp_path / "run/evaluation.txt").read_text().splitlines()
    assert text[0].startswith(f"mIoU: {results['mIoU']['best']['mIoU']} ")
    assert text[1] == f"pixel accuracy: {results['pixel_accuracy']}"
    other = commands.main(monkeypatch, capsys, tmp_path, *given, "merging.threshold=0.01")
    assert other.code and "merging.threshold: 0.0002 in the folder, 0.01 now" in other.err
    other = commands.main(monkeypatch, capsys, tmp_path, "model=mini-sd", "dataset=scenes", "device=cpu", "run_dir=run")
    assert other.code and "task: 'unsupervised' in the folder" in other.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("task=supervised", "unknown task 'supervised'; expected one of: segmentation, unsupervised"),
        ("+merging.size=3", "merging has no 'size'; expected one of: threshold, stride, rounds"),
        ("merging.stride=0", "whole numbers of at least 1"),
        ("merging.threshold=-1", "must be a finite number of at least 0"),
        ("merging.threshold=much", "expected a threshold"),
    ],
)
def test_what_is_refused(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Benchmark.of(values(*RUN, given, f"run_dir={tmp_path / 'run'}")).run()
    assert not (tmp_path / "run").exists()
