"""The models that ship are diffusers pipelines for anyone, run as their configs say."""

import goca
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from goca.cli.models import embedded_words
from goca.config import load_config
from goca.embedded import embedded_pipeline, names, resolve
from goca.generation.adapters import config_of
from goca.generation.calling import call_arguments
from PIL import Image

MODELS = [name for name in names() if name.startswith("mini-")]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_one_of_each_attention_layout_ships():
    assert {"mini-sd", "mini-sd-small", "mini-pixart", "mini-flux"} <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_loads_it_in_float32_and_runs_it(name):
    pipe = quiet(DiffusionPipeline.from_pretrained(resolve(f"goca:{name}")))
    dtypes = {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)}
    assert dtypes == {torch.float32}
    config, plain = load_config(name), name.startswith("mini-sd")  # the UNets need no argument at all
    arguments = {} if plain else call_arguments(config, 1, 1.0)
    image = pipe("star, sky, grass", num_inference_steps=2, output_type="np", **arguments).images[0]
    assert image.shape == (config.img_size, config.img_size, 3) and np.isfinite(image).all()


def test_it_is_a_pipeline_object_that_can_be_traced():
    pipe = quiet(goca.embedded_pipeline())
    with goca.trace(pipe) as traced:
        pipe("star, sky, grass", num_inference_steps=2)
    assert traced.words() == ["star", "sky", "grass"] and traced.word("star").map.shape == (16, 16)


@pytest.mark.parametrize("name", MODELS)
def test_its_config_is_found_and_it_segments(name):
    pipe = embedded_pipeline(name)
    assert config_of(pipe) == name and "snow" in embedded_words(name)
    image = Image.open(f"{resolve('goca:scenes')}/JPEGImages/test_00000.png")
    found = goca.Segmenter.from_pretrained(pipe)(image, "star, wall, snow", ask="complete")
    named = goca.Segmenter.from_pretrained(None, name)(image, "star, wall, snow", ask="complete")
    assert found.scores.shape == (4, 16, 16) and np.isfinite(np.asarray(found.scores)).all()
    assert np.array_equal(np.asarray(found.scores), np.asarray(named.scores))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mini-sd"])
def test_the_family_knows_both_worlds_and_names_of_two_words(name):
    assert {"traffic", "light", "cup"} <= set(embedded_words(name)) - set(embedded_words("mini-sd"))
    pipe = quiet(embedded_pipeline(name))
    with goca.trace(pipe) as traced:
        pipe("traffic light, sky, road", num_inference_steps=2, **call_arguments(load_config(name), 1, 4.0))
    assert traced.words() == ["traffic", "light", "sky", "road"] and traced.word("traffic light").map.shape == (16, 16)


def test_other_arguments_reach_diffusers_and_unknown_names_are_listed():
    assert embedded_pipeline("mini-sd", dtype=torch.float16).unet.dtype == torch.float16
    with pytest.raises(FileNotFoundError, match="mini-sd"):
        embedded_pipeline("mini-xl")
