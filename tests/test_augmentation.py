"""Test-time augmentation: one pass is unchanged, several are averaged, mirrored ones are mirrored back."""

import pytest
import torch
from goca import Segmenter
from goca.config import ConfigError, load_config
from goca.datasets import load_dataset
from goca.method.aggregation import Aggregator
from goca.method.augmentation import Augmentation, augmentations
from goca.prompts import PromptAnnotation
from goca.requests import Request
from PIL import Image, ImageOps

SCENES = {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": "test", "classes": "classes.json"}
PROMPT = "star, wall, snow"


@pytest.fixture(scope="module")
def plain():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


@pytest.fixture(scope="module")
def picture():
    dataset = load_dataset(SCENES)
    return dataset.sample(dataset.ids[0]).image


@pytest.fixture(scope="module")
def annotation(plain):
    return plain.read_prompt(PROMPT)[0]


def augmented(plain, **fields):
    return Segmenter(plain.extractor, load_config(plain.config, **fields))


def maps(segmenter, picture, annotation, noise=None):
    capture = segmenter.capture(picture, annotation, noise, "a")
    return capture.attention_map(), capture.space_map()


def test_the_passes_of_a_config_start_with_the_plain_one(plain):
    assert augmentations(plain.config) == (Augmentation(200),)
    config = load_config(plain.config, flips=True, draws=2, timesteps=[300])
    assert len(augmentations(config)) == len(set(augmentations(config))) == 8 and augmentations(config)[
        0
    ] == Augmentation(200)


def test_without_augmentation_the_result_is_that_of_one_forward_pass_bit_for_bit(plain, picture, annotation):
    aggregator = Aggregator(plain.plan())
    plain.forward([Request(picture, annotation, image_id="a")], aggregator)
    expected = aggregator.attention_map(), aggregator.space_map()
    for found, alone in zip(maps(plain, picture, annotation), expected):
        assert torch.equal(found, alone)
    same_twice = augmented(plain, timesteps=(plain.config.t,))
    for found, expected in zip(maps(same_twice, picture, annotation), maps(plain, picture, annotation)):
        assert torch.equal(found, expected)  # (x + x) / 2 is x


def test_a_mirrored_picture_gives_the_mirrored_maps(plain, picture, annotation):
    both = augmented(plain, flips=True)
    attention, space = maps(both, picture, annotation)
    mirrored, mirrored_space = maps(both, ImageOps.mirror(picture), annotation)
    assert torch.equal(mirrored.flip(2), attention)
    there_and_back = mirrored_space.unflatten(1, (16, 16)).unflatten(3, (16, 16)).flip(2, 4).flatten(3).flatten(1, 2)
    assert torch.equal(there_and_back, space)
    assert not torch.equal(maps(plain, ImageOps.mirror(picture), annotation)[0].flip(2), attention)


def test_a_symmetric_picture_gets_symmetric_maps(plain, picture, annotation):
    half = picture.crop((0, 0, picture.width // 2, picture.height))
    symmetric = Image.new(picture.mode, picture.size)
    symmetric.paste(half, (0, 0))
    symmetric.paste(ImageOps.mirror(half), (picture.width - half.width, 0))
    attention = maps(augmented(plain, flips=True), symmetric, annotation)[0]
    one = maps(plain, symmetric, annotation)[0]
    assert torch.equal(attention, attention.flip(2)) and torch.equal(attention, (one + one.flip(2)) / 2)


def test_draws_are_other_noise_that_follows_from_the_images_id(plain, picture, annotation):
    three = augmented(plain, draws=3)
    attention = maps(three, picture, annotation)[0]
    assert torch.equal(attention, maps(three, picture, annotation)[0])
    seeds = [Augmentation(0, draw).seed(7) for draw in range(3)]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    noises = [torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert not torch.equal(*(maps(plain, picture, annotation, noise)[0] for noise in noises[:2]))


def test_the_average_is_the_mean_of_maps_that_still_sum_to_one(plain, picture, annotation):
    several = augmented(plain, timesteps=(300, 100))
    attention, space = maps(several, picture, annotation)
    parts = [maps(augmented(plain, t=t), picture, annotation) for t in (200, 300, 100)]
    assert torch.allclose(attention, sum(each for each, _ in parts) / 3, atol=1e-7)
    assert torch.allclose(space, sum(each for _, each in parts) / 3, atol=1e-7)
    assert torch.allclose(attention.sum(-1), torch.ones(1, 16, 16), atol=1e-5)


def test_batches_and_refinement_see_the_average(plain, picture, annotation):
    several = augmented(plain, flips=True, timesteps=(300,))
    both = several([picture, ImageOps.mirror(picture)], [annotation] * 2, image_id=["a", "a"])
    assert torch.allclose(both[0].scores, both[1].scores.flip(2), atol=1e-5)
    assert both[0].scores.shape == (4, 16, 16)


def test_a_dense_feature_is_mirrored_back_and_one_of_the_text_is_not(plain, picture, annotation):
    layer = "up-level1-repeat0-vit-block0-cross-q"
    both = augmented(plain, flips=True, refine=({"prototypes": {"layer": layer}},))
    dense = both.capture(picture, annotation, image_id="a").dense[layer]
    mirrored = both.capture(ImageOps.mirror(picture), annotation, image_id="a").dense[layer]
    assert dense.ndim == 4 and torch.equal(dense, mirrored.flip(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"timesteps": (100, -1)}, "timesteps holds -1"),
        ({"flips": 2}, "flips is 2"),
        ({"method": "magic"}, "goca, diffsegmentor"),
    ],
)
def test_invalid_augmentation_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        load_config("mini-sd", **fields)


def test_an_annotation_without_classes_still_has_maps(plain, picture):
    attention, _ = maps(augmented(plain, flips=True), picture, PromptAnnotation("star"))
    assert torch.isfinite(attention).all()
