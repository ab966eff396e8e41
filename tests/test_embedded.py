"""The models that ship are diffusers pipelines for anyone: they load and run without an argument."""

import goca
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from goca.cli.models import embedded_words
from goca.embedded import embedded_pipeline, names, resolve
from goca.generation.adapters import config_of
from PIL import Image

MODELS = [name for name in names() if name.startswith("mini-")]


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_loads_and_runs_it_without_an_argument(name):
    pipe = DiffusionPipeline.from_pretrained(resolve(f"goca:{name}"))
    dtypes = {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)}
    assert dtypes == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    image = pipe("star, sky, grass", num_inference_steps=2, output_type="np").images[0]
    assert image.shape[0] == image.shape[1] and image.shape[0] % 64 == 0 and np.isfinite(image).all()


def test_it_is_a_pipeline_object_that_can_be_traced():
    pipe = goca.embedded_pipeline()
    pipe.set_progress_bar_config(disable=True)
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


def test_the_small_one_knows_both_worlds_and_names_of_two_words():
    assert {"traffic", "light", "cup"} <= set(embedded_words("mini-sd-small")) - set(embedded_words("mini-sd"))
    pipe = embedded_pipeline("mini-sd-small")
    pipe.set_progress_bar_config(disable=True)
    with goca.trace(pipe) as traced:
        pipe("traffic light, sky, road", num_inference_steps=2)
    assert traced.words() == ["traffic", "light", "sky", "road"] and traced.word("traffic light").map.shape == (16, 16)


def test_other_arguments_reach_diffusers_and_unknown_names_are_listed():
    assert embedded_pipeline("mini-sd", dtype=torch.float16).unet.dtype == torch.float16
    with pytest.raises(FileNotFoundError, match="mini-sd"):
        embedded_pipeline("mini-xl")
