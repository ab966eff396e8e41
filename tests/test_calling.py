"""The arguments with which pipelines are called to generate images."""

import inspect

import diffusers
import pytest
from goca.config import ConfigError, load_config
from goca.generation.calling import call_arguments


def test_the_size_is_the_configs_and_guidance_goes_by_its_usual_name():
    assert call_arguments(load_config("sd15", img_size=(512, 768)), 2, 7.5) == {
        "height": 512,
        "width": 768,
        "guidance_scale": 7.5,
    }


def test_a_second_forwards_scale_takes_the_place_and_every_prompt_has_its_negative_one():
    arguments = call_arguments(load_config("qwen-image"), 3, 5.0)
    assert arguments["true_cfg_scale"] == 5.0 and "guidance_scale" not in arguments
    assert arguments["negative_prompt"] == [" "] * 3


@pytest.mark.parametrize(
    ("model", "pipeline"),
    [
        ("pixart-alpha", "PixArtAlphaPipeline"),
        ("pixart-sigma", "PixArtSigmaPipeline"),
        ("qwen-image", "QwenImagePipeline"),
    ],
)
def test_the_pipelines_know_the_arguments(model, pipeline):
    known = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    assert set(call_arguments(load_config(model), 1, 4.0)) <= set(known)


def test_what_is_no_argument_is_refused():
    with pytest.raises(ConfigError, match="max_sequence_length"):
        load_config("sd15", call={"max length": 3})
