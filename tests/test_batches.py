"""Several pictures in one forward: what comes out is what each gives alone; bounds on what a batch may hold."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusion_feature import FeatureExtractor, PromptCut
from families import FAMILIES
from goca.benchmark import Benchmark
from goca.config import ConfigError, load_config
from goca.config import folder as configs
from goca.prompts import PromptAnnotation
from goca.requests import make_requests
from goca.segmenter import MemoryBudgetTooSmall, Segmenter
from omegaconf import OmegaConf
from PIL import Image
from tiny import SD_CONFIG

PROMPTS = ["cat, grass, sky", "dog", "wall, sky, cat, dog"]


def drawn(count, side=(44, 30)):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, *side[::-1], 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def family_seg(request, tmp_path_factory):
    folder = request.param.save(tmp_path_factory.mktemp("batches") / "pipeline")
    return Segmenter.from_pretrained(str(folder), request.param.config, device="cpu")


def test_score_maps_of_a_batch_are_those_of_single_pictures(family_seg):
    pictures, names = drawn(3), ["a", "b", "c"]
    annotations = [family_seg.read_prompt(prompt)[0] for prompt in PROMPTS]
    summaries = family_seg.summaries(make_requests(pictures, annotations, image_ids=names))
    for picture, annotation, name, (summary, number) in zip(pictures, annotations, names, summaries, strict=True):
        alone = family_seg.score_maps(picture, annotation, image_id=name)
        found = family_seg.rescale(summary.attention_map()[number], annotation)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    together = family_seg(pictures, PROMPTS, image_id=names)
    alone = family_seg(pictures[1], PROMPTS[1], image_id="b")
    assert together[1].names == alone.names and together[1].class_ids == alone.class_ids
    # random weights refine towards a constant map, and the closing min-max stretches what is left of the rounding
    torch.testing.assert_close(together[1].scores, alone.scores, rtol=0, atol=5e-3)


def test_refined_scores_of_a_batch_on_a_trained_model():
    seg = Segmenter.from_pretrained(None, "mini-sd", device="cpu")
    pictures, prompts, names = drawn(3, (128, 128)), ["tree, sky, grass", "house, sea", "star, wall"], ["a", "b", "c"]
    for found, *one in zip(seg(pictures, prompts, image_id=names), pictures, prompts, names, strict=True):
        torch.testing.assert_close(found.scores, seg(*one[:2], image_id=one[2]).scores, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def seg(tiny_sd):
    return Segmenter.from_pretrained(str(tiny_sd), SD_CONFIG, device="cpu")


def test_one_prompt_for_all_and_noise_for_one(seg):
    pictures = drawn(2)
    near = {"rtol": 0, "atol": 5e-3}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = seg(pictures, "cat, sky", noise=[noise, None], image_id=["a", "b"])
    torch.testing.assert_close(found[0].scores, seg(pictures[0], "cat, sky", noise).scores, **near)
    torch.testing.assert_close(found[1].scores, seg(pictures[1], "cat, sky", image_id="b").scores, **near)
    assert seg([], []) == []
    with pytest.raises(ValueError, match="2 images and 3 prompts"):
        seg(pictures, PROMPTS)


def test_a_bound_cuts_a_batch_in_parts_and_changes_no_score(seg, monkeypatch):
    sizes = []
    forward = seg.extractor.forward
    monkeypatch.setattr(
        seg.extractor,
        "forward",
        lambda prompts, *rest, **rules: sizes.append(len(prompts)) or forward(prompts, *rest, **rules),
    )
    pictures = drawn(5)
    free = seg(pictures, "cat, sky")
    assert sizes == [5] and seg.budget.bytes_per_image > 0
    bound = Segmenter(seg.extractor, seg.config, max_bytes=5 * seg.budget.bytes_per_image // 2)
    for found, expected in zip(bound(pictures, "cat, sky"), free, strict=True):
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=5e-3)
    assert sizes == [5, 1, 2, 2]
    tight = Segmenter(seg.extractor, seg.config, max_bytes=100)
    with pytest.raises(
        MemoryBudgetTooSmall,
        match=rf"max_bytes is 100, but a single image needs {bound.budget.bytes_per_image:,} bytes",
    ):
        tight(pictures, "cat, sky")


def test_what_a_batch_warns_of_is_told_by_the_picture(seg):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seg(drawn(2), ["cat", PromptAnnotation("cat, dog, grass, wall, sky, cat, dog, grass", [1], {1: [1]}, [0], [])])
    cut = [each.message for each in caught if isinstance(each.message, PromptCut)]
    assert [(each.number, each.cut) for each in cut] == [(1, "cat, dog, grass")]


# ---- runs


def run(folder, world=1, **more):
    dataset = OmegaConf.to_container(OmegaConf.load(configs().parent / "dataset" / "scenes.yaml"))
    model = OmegaConf.to_container(OmegaConf.load(configs() / "mini-sd.yaml"))
    values = {"model": model, "dataset": dataset, "run_dir": folder, "limit": 7, "device": "cpu", **more}
    summaries = [Benchmark.of(values).run(rank=rank, world=world) for rank in range(world)]
    assert [summary is not None for summary in summaries] == [False] * (world - 1) + [True]
    return json.loads((folder / "results.json").read_text())


def test_counts_do_not_depend_on_batches_or_processes(tmp_path):
    alone, *others = (
        run(tmp_path / f"{world}-{size}", world, batch_size=size) for world, size in ((1, 1), (1, 3), (2, 2), (3, 1))
    )
    assert alone["images"]["counted"] == 7
    assert others[-1]["counts"] == alone["counts"]
    for other in others:
        for counts in ("intersection", "union"):  # a batch may round otherwise than a picture alone: pixels at a tie
            assert np.abs(np.subtract(other["counts"][counts], alone["counts"][counts])).sum(axis=1).max() <= 2


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"max_bytes": "2 GB"}])
def test_sizes_that_are_none(tmp_path, given):
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        run(tmp_path, **given)


def test_pictures_and_grids_of_any_side_ratio(family_seg):
    side, grid = family_seg.config.img_size, family_seg.config.feat_size
    wide = {"img_size": [side, 2 * side], "feat_size": [grid, 2 * grid]}
    config = load_config(family_seg.config, **wide)
    extractor = FeatureExtractor((), config.version, "cpu", "auto", config.img_size, vars_of(family_seg))
    seg, pictures = Segmenter(extractor, config), drawn(2)
    found = seg(pictures, "cat, sky", image_id=["a", "b"])
    assert found[0].scores.shape == (3, grid, 2 * grid) and found[0].label_map().shape == (30, 44)
    space = seg.capture(pictures[0], seg.read_prompt("cat, sky")[0]).space_map()[0]
    assert space.shape == (2 * grid**2, 2 * grid**2)
    assert ((space.sum(1) > 0) & (space.sum(1) < 1 + 1e-5)).all()  # in joint attention text has its share
    assert json.loads(json.dumps(config.to_dict()))["img_size"] == wide["img_size"]
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config


def vars_of(seg):
    """A pipeline object with the parts of a segmenter."""
    return SimpleNamespace(**seg.extractor.parts)


@pytest.mark.parametrize("size", [[8, 8, 8], [512, 0], [512, 1.5], "512", True])
def test_sides_that_are_none(size):
    with pytest.raises(ConfigError, match=r"img_size is .*; it must be a whole number of at least 8, or two of them"):
        load_config("sd15", img_size=size)
