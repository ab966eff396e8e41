"""DiffSegmentor against its formula, as a run and in parts; vanilla and plus configs for the models."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from commands import values
from goca.benchmark import Benchmark
from goca.benchmark.predictor import SEGMENTERS
from goca.config import METHODS, ConfigError, load_config, names
from goca.datasets import load_dataset
from goca.prompts.tokens import Token
from goca.requests import seed_of
from goca.segmenter import MemoryBudgetTooSmall, Segmenter
from goca.variants.diffsegmentor import DiffSegmentor, first_words
from sizes import SIZES

SCENES = {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": "test", "classes": "classes.json"}
CAPTION = "star, wall, snow"


@pytest.fixture(scope="module")
def segmenter():
    return DiffSegmentor.from_pretrained(None, "mini-sd-diffsegmentor", device="cpu")


@pytest.fixture(scope="module")
def picture():
    dataset = load_dataset(SCENES)
    return dataset.sample(dataset.ids[0]).image


def spread(maps):
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low)


def literally(segmenter, picture, prompt, tokens):
    """The formula on the whole attention maps of one prompt, in float64."""
    extractor = segmenter.extractor
    maps = [name for name in extractor.layer_ids() if name.endswith("-map")]
    fx = type(extractor)(maps, "1-5", "cpu", "float32", 64, SimpleNamespace(**extractor.parts))
    found = fx.extract(prompt, picture, segmenter.config.t, seed=seed_of(picture, "a"))
    cross, own = {8: [], 16: []}, []
    for name, attention in found.items():
        side, mean = int(attention.shape[2] ** 0.5), attention[0].double().mean(0)  # [S, N or S]
        if name.endswith("-cross-map"):
            cross[side].append(mean[:, tokens].mean(-1).view(side, side))
        elif side == 16:
            own.append(mean)
    total = 0.5 * spread(torch.stack(cross[16]).mean(0))  # .1 and .1, brought to sum 1
    small = spread(torch.stack(cross[8]).mean(0))[None, None]
    total = total + 0.5 * F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)[0, 0]
    return spread((torch.stack(own).mean(0) @ total.flatten()).view(16, 16))


def test_the_maps_are_the_formula_s(segmenter, picture):
    annotation, _ = segmenter.read_prompt("star, wall")
    maps = segmenter.score_maps(picture, annotation, image_id="a")
    assert maps.shape == (3, 16, 16) and not maps[-1].any()
    for found, name, tokens in zip(maps, ("star", "wall"), ([1], [1])):
        expected = literally(segmenter, picture, f"{name}, star, wall", tokens)
        assert (found - expected).abs().max() < 2e-5


def test_classes_in_one_batch_equal_classes_one_by_one(segmenter, picture):
    annotation, _ = segmenter.read_prompt(CAPTION)
    together = segmenter.score_maps(picture, annotation, image_id="a")
    one = DiffSegmentor(segmenter.extractor, segmenter.config)
    one.score_maps(picture, annotation, image_id="a")
    alone = DiffSegmentor(
        segmenter.extractor,
        segmenter.config,
        max_bytes=max(one.budget.bytes_per_image, segmenter.budget.bytes_per_image) + 1,
    )
    assert torch.allclose(alone.score_maps(picture, annotation, image_id="a"), together, atol=2e-5)
    with pytest.raises(MemoryBudgetTooSmall, match="max_bytes is 10"):
        DiffSegmentor(segmenter.extractor, segmenter.config, max_bytes=10).score_maps(picture, annotation)


def test_a_picture_is_segmented_by_a_prompt(segmenter, picture):
    result = segmenter(picture, CAPTION, image_id="a")
    assert result.names == ["star", "wall", "snow", "background"] and result.scores.shape == (4, 16, 16)
    assert result.scores.min() == 0 and result.scores.max() == 1


def test_the_class_is_called_by_the_data_set_s_name_or_by_its_words_in_the_caption(segmenter):
    annotation, _ = segmenter.read_prompt("moon star, wall")
    assert segmenter.names(annotation) == ["moon star", "wall"]
    named = DiffSegmentor(segmenter.extractor, segmenter.config)
    named.use_class_names({1: "moon"})
    assert named.names(annotation) == ["moon", "wall"]
    of = DiffSegmentor(segmenter.extractor, load_config(segmenter.config, class_prompt="wall, {name}, {caption}"))
    assert of.prompt("snow wall", "snow, star") == ("wall, snow wall, snow, star", [3, 4])
    annotation.existent_objects[2] = []
    with pytest.raises(ConfigError, match="class 2 has neither a name nor a word"):
        named.names(annotation)


def test_words_end_where_something_stands_between():
    text = "traffic light, traffic light"
    tokens = [Token(i, "", span, "word") for i, span in enumerate([(0, 7), (8, 13), (15, 22), (23, 28)])]
    assert first_words(text, tokens) == "traffic light"


def test_the_run_scores_and_goes_on(tmp_path):
    given = ("model=mini-sd-diffsegmentor", "dataset=scenes", "device=cpu", f"run_dir={tmp_path}")
    Benchmark.of(values(*given, "limit=2")).run()
    results = Benchmark.of(values(*given, "limit=5")).run()
    assert results["images"]["counted"] == 5 and results["config"]["model"]["method"] == "diffsegmentor"
    assert results["mIoU"]["best"]["mIoU"] > 0.3  # far above all background (0.1)


@pytest.mark.parametrize("prompt", ["a photograph", "{name}, {name}", 3])
def test_a_class_prompt_names_the_class_once(prompt):
    with pytest.raises(ConfigError, match="class_prompt is"):
        load_config("diffsegmentor", class_prompt=prompt)


def test_every_method_has_its_class_and_refuses_another_s(segmenter):
    assert tuple(SEGMENTERS) == METHODS
    with pytest.raises(ConfigError, match="SEGMENTERS"):
        Segmenter(segmenter.extractor, segmenter.config)
    with pytest.raises(ConfigError, match="no test-time augmentation"):
        DiffSegmentor(segmenter.extractor, load_config(segmenter.config, flips=True))


def test_a_grid_without_self_maps_of_its_own_is_refused(segmenter, picture):
    wide = DiffSegmentor(segmenter.extractor, load_config(segmenter.config, feat_size=32))
    with pytest.raises(ConfigError, match="cross maps seen are 8 x 8, 16 x 16"):
        wide(picture, CAPTION)


def test_every_model_has_a_vanilla_that_differs_in_its_rules_alone():
    others = {"sd15-baseline", "fttm", "diffsegmentor", "flux", "pixart-sigma"}  # the last two have layers of their own
    models = {name for name in names() if not name.endswith(("-vanilla", "-plus", "-diffsegmentor"))}
    for name in models - others - {*SIZES, "kolors"}:  # those are set by a rule (docs/models.md)
        plain, full = load_config(f"{name}-vanilla").to_dict(), load_config(name).to_dict()
        rules = {"head_method", "layer_method", "rescale_method"}
        assert {key for key in full if full[key] != plain[key]} <= rules
        assert [plain[rule] for rule in sorted(rules)] == ["average", "vanilla", "per-token renorm+"]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "mini-sd"])
def test_plus_is_off_elsewhere(name):
    full, plus = load_config(name), load_config(f"{name}-plus")
    assert plus.flips and plus.head_method == "l2-norm" and plus.rescale_method.endswith("x raw + renorm")
    assert not full.flips and full.draws == 1 and full.timesteps == ()
