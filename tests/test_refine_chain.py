"""Chains of refinements in a config: what they may say, in which order they run, what they are given."""

import json

import numpy as np
import pytest
import torch
from commands import values
from diffusion_feature import LayerNotFound
from goca.benchmark import Benchmark
from goca.config import ConfigError, load_config
from goca.method.aggregation import Aggregator
from goca.method.rescaling import rescale_scores
from goca.prompts import PromptAnnotation
from goca.refine import (
    ImageMissing,
    MapNotCaptured,
    RefineError,
    activation_affinity,
    affinity,
    dense_crf,
    merge_maps,
    prototypes,
)
from goca.refine.chain import REFINEMENTS, RefinementInputs, run_chain
from goca.refine.pamr import filtered_pamr, median
from goca.segmenter import Segmenter
from PIL import Image
from tiny import SD_CONFIG

ANNOTATION = PromptAnnotation("cat, grass, sky", [1, 3, 5], {7: [1], 2: [3]}, [0], [[5]])
LAYER = "up-level1-repeat0-vit-block0-cross-q"
PROTOTYPES = {"prototypes": {"layer": LAYER}}
WITH_LAYER = {name: {name: {"layer": LAYER}} for name in ("prototypes", "activation_affinity")}


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (30, 44, 3), np.uint8))


@pytest.fixture(scope="module")
def plain(tiny_sd):
    return Segmenter.from_pretrained(str(tiny_sd), {**SD_CONFIG, "refine": []}, device="cpu")


@pytest.fixture(scope="module")
def scores(plain, picture):
    return plain.score_maps(picture, ANNOTATION, image_id="a")


def refined(plain, picture, chain, **more):
    """The scores that a chain leaves, from the same model."""
    config = load_config(plain.config, refine=chain, **more)
    return Segmenter(plain.extractor, config)(picture, ANNOTATION, image_id="a").scores


def test_no_step_changes_nothing(plain, picture, scores):
    assert torch.equal(refined(plain, picture, []), scores)
    assert torch.equal(refined(plain, picture, ["affinity"], affinity_order=0), scores)


def test_every_step_is_its_function(plain, picture, scores):
    kept = load_config(plain.config, refine=[PROTOTYPES])
    capture = Segmenter(plain.extractor, kept).capture(picture, ANNOTATION, image_id="a")
    space, dense = capture.space_map()[0], capture.dense[LAYER][0]
    expected = {
        "affinity": affinity(scores, space, 2),
        "activation_affinity": activation_affinity(scores, dense, 2),
        "merge_maps": merge_maps(scores, space),
        "prototypes": prototypes(scores, dense, 8),
        "pamr": filtered_pamr(scores, picture),
        "dense_crf": dense_crf(scores, picture),
        "median": median(scores),
        "rescaling": rescale_scores(scores, "per-token renorm+"),
    }
    assert set(expected) == set(REFINEMENTS)
    for name, maps in expected.items():
        torch.testing.assert_close(refined(plain, picture, [WITH_LAYER.get(name, name)]), maps)
    assert dense.ndim == 3 and not torch.equal(expected["affinity"], affinity(scores, space, 1))


def test_steps_run_in_the_order_given_and_with_their_parameters(plain, picture, scores):
    space = plain.capture(picture, ANNOTATION, image_id="a").space_map()[0]
    chain = [{"affinity": {"order": 1}}, {"dense_crf": {"iterations": 2, "bilateral_compat": 9}}, "median"]
    expected = median(dense_crf(affinity(scores, space, 1), picture, iterations=2, bilateral_compat=9))
    found = refined(plain, picture, chain)
    torch.testing.assert_close(found, expected)
    assert found.shape == (3, 30, 44)
    assert not torch.equal(
        refined(plain, picture, ["median", {"affinity": {"order": 1}}]),
        refined(plain, picture, [{"affinity": {"order": 1}}, "median"]),
    )


def test_maps_of_the_picture_can_go_back_to_the_grid(plain, picture, scores):
    found = refined(plain, picture, ["pamr", PROTOTYPES, "affinity"])
    assert found.shape == scores.shape


@pytest.mark.parametrize(
    ("protocol", "used"),
    [
        ("paper", "paper"),
        ("released", "released"),
        ({"preset": "released", "noise": "nominal"}, "released"),
        ({"preset": "paper", "void": "background"}, "paper"),
    ],
)
def test_the_crf_takes_the_runs_protocol(plain, scores, picture, protocol, used):
    sources = RefinementInputs(Aggregator(plain.plan()), image=picture)
    given = run_chain(scores, load_config(plain.config, refine="dense_crf", protocol=protocol), sources)
    torch.testing.assert_close(given, dense_crf(scores, picture, used))
    own = load_config(plain.config, refine=[{"dense_crf": {"protocol": "paper"}}], protocol=protocol)
    torch.testing.assert_close(run_chain(scores, own, sources), dense_crf(scores, picture, "paper"))


def test_a_batch_is_refined_picture_by_picture(plain, picture):
    other = Image.fromarray(np.random.default_rng(6).integers(0, 256, (20, 24, 3), np.uint8))
    config = load_config(plain.config, refine=["affinity", PROTOTYPES, "pamr"])
    segmenter = Segmenter(plain.extractor, config)
    both = segmenter([picture, other], ANNOTATION, image_id=["a", "b"])
    for image, name, found in zip([picture, other], "ab", both):
        assert found.scores.shape[1:] == (image.height, image.width)
        torch.testing.assert_close(found.scores, segmenter(image, ANNOTATION, image_id=name).scores, rtol=0, atol=1e-4)


# ---- what is said of it in a config


def test_a_chain_survives_the_result_file():
    chain = ["affinity", {"dense_crf": {"iterations": 3}}, {"pamr": {"dilations": [1, 2]}}]
    config = load_config("sd15", refine=chain)
    assert config.refine == tuple(chain)
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config
    assert load_config("sd15", refine=[{"affinity": None}, {"median": {}}]).refine == ("affinity", "median")
    assert load_config("sd15", refine="median").refine == ("median",)
    assert load_config("sd15").refine == ("affinity",)


def test_fttm_is_the_baseline_with_a_crf():
    fttm = load_config("fttm")
    assert fttm == load_config("sd15-baseline", refine=["affinity", "dense_crf"])
    assert fttm.affinity_order == load_config("sd15").affinity_order


def test_a_chain_on_the_command_line():
    model = values("model=sd15", "model.refine=[affinity,{dense_crf:{iterations:5}}]")["model"]
    assert load_config(model).refine == ("affinity", {"dense_crf": {"iterations": 5}})


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["afinity"], "unknown step 'afinity' .nearest: affinity.; expected one of: affinity, activation_affinity, "),
        ([{"dense_crf": {"sxy": 3}}], "dense_crf has no parameter 'sxy'; expected one of: protocol, iterations"),
        ([{"median": {"layer": "x"}}], "median has no parameter 'layer'; expected one of: window"),
        (["prototypes"], r"prototypes: \{layer: LAYER_ID\}"),
        (["dense_crf", "affinity"], "affinity works on the grid, but dense_crf before it"),
        (["affinity", "pamr", "median", "merge_maps"], "merge_maps works on the grid, but pamr before it"),
        ([{"affinity": {}, "median": {}}], "is not a step"),
        ([{"affinity": 3}], "is not a step"),
        ([7], "is not a step"),
        ([{"rescaling": {"rule": "loud"}}], "unknown rescaling.rule 'loud'; expected one of: raw, per-token renorm"),
        (["activation_affinity"], r"activation_affinity: \{layer: LAYER_ID\}"),
        (None, "expected a list of steps"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_anything_is_loaded(chain, message):
    with pytest.raises(ConfigError, match=message):
        load_config("sd15", refine=chain)


def test_maps_that_were_not_captured(plain, scores, picture):
    with pytest.raises(ConfigError, match="name the maps for it in self_layers"):
        load_config("sd15", self_layers=[])
    empty = RefinementInputs(Aggregator(plain.plan()), image=picture)
    with pytest.raises(MapNotCaptured, match="affinity needs the space map"):
        run_chain(scores, load_config(plain.config, refine="affinity"), empty)
    with pytest.raises(MapNotCaptured, match=f"prototypes needs the feature '{LAYER}', which was not captured"):
        run_chain(scores, load_config(plain.config, refine=[PROTOTYPES]), empty)
    with pytest.raises(LayerNotFound, match="nothing-here"):
        refined(plain, picture, [{"prototypes": {"layer": "nothing-here"}}])


@pytest.mark.parametrize("step", ["dense_crf", "pamr"])
def test_a_run_without_pictures(plain, scores, picture, step):
    segmenter = Segmenter(plain.extractor, load_config(plain.config, refine=[step]))
    capture = segmenter.capture(picture, ANNOTATION)
    with pytest.raises(ImageMissing, match=f"{step} needs the image, but there is none"):
        segmenter.refine(scores, capture)
    with pytest.raises(RefineError, match="expected"):
        segmenter.refine(scores, capture, image=np.zeros((4, 4)))


def test_fttm_runs_on_the_scenes(tmp_path):
    pipeline = [
        "model.pipeline=goca:mini-sd",
        "model.img_size=64",
        "model.feat_size=16",
        "model.cross_layers=all",
        "model.self_layers=[up-level1-repeat0-vit-block0-self-map]",
        "model.ref_layer=up-level1-repeat0-vit-block0-cross-q",
    ]
    given = values("model=fttm", *pipeline, "dataset=scenes", "limit=2", "device=cpu", f"run_dir={tmp_path}")
    results = Benchmark.of(given).run()
    assert results["images"]["counted"] == 2
    assert results["config"]["model"]["refine"] == ["affinity", "dense_crf"]
    assert results["mIoU"]["best"]["mIoU"] > 0.3
