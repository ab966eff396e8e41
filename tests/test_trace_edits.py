"""Pipelines that look at other images, and prompts that are read in another way: traced rightly, or refused."""

import pytest
import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    QwenImageEditPipeline,
)
from diffusion_feature import WrongFamily
from diffusion_feature.families import VERSIONS
from goca.generation.averages import TraceError
from goca.generation.trace import trace
from goca.method.aggregation import Aggregator
from PIL import Image
from zoo import ZOO


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    made = {}

    def pipe(name):
        if name not in made:
            made[name] = ZOO[name].read(ZOO[name].save(tmp_path_factory.mktemp("pipelines") / name))
        return made[name]

    return pipe


def test_flux2_with_an_image_traces_the_one_that_is_made(pipes, monkeypatch):
    model, pipe = ZOO["flux2-klein-4b"], pipes("flux2-klein-4b")
    seen, take = [], Aggregator.attention
    monkeypatch.setattr(Aggregator, "attention", lambda own, a: (seen.append(a), take(own, a)))
    with trace(pipe, model.config, steps=[0]) as t:
        model.run(pipe, "cat, grass", image=Image.new("RGB", (64, 64), "red"), generator=seeded())
    beside = seen[0].key.shape[2] - 512 - 16
    assert beside >= 16
    assert {(a.image_keys.start, a.image_keys.stop) for a in seen} == {(512, 512 + 16)}
    assert t.word("cat").map.shape == (4, 4)


def test_flux2_with_cached_keys_is_refused(pipes):
    model, plain = ZOO["flux2-klein-4b"], pipes("flux2-klein-4b")
    assert isinstance(plain, Flux2KleinPipeline)
    pipe = Flux2KleinKVPipeline(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(TraceError, match="their order is not known"), trace(pipe, model.config):
        pipe(
            prompt="cat",
            image=Image.new("RGB", (64, 64), "red"),
            height=64,
            width=64,
            num_inference_steps=2,
            output_type="np",
        )


def test_qwen_image_edit_is_refused(pipes):
    plain = pipes("qwen-image")
    pipe = QwenImageEditPipeline(**plain.components, processor=None)
    with pytest.raises(WrongFamily, match="reads an image within its prompt"):
        trace(pipe, ZOO["qwen-image"].config)


def test_qwen_image_of_several_layers_is_refused():
    given = {
        "img_shapes": [[(4, 2, 2)]],
        "timestep": torch.ones(1),
        "hidden_states": None,
        "encoder_hidden_states": None,
    }
    family = VERSIONS["qwen-image"]
    with pytest.raises(ValueError, match="4 layers of an image; understood is one"):
        family.call(given, family.patch)


def test_lumina_with_prompts_of_different_lengths_is_refused(pipes):
    model, pipe = ZOO["lumina2"], pipes("lumina2")
    with pytest.raises(TraceError, match="give them one at a time"), trace(pipe, model.config):
        model.run(pipe, ["cat", "cat, grass, sky"])


@pytest.mark.parametrize("name", ["cogview4", "kandinsky5", "qwen-image", "z-image"])
def test_prompts_of_different_lengths_keep_their_words(pipes, name):
    """A pipeline pads its batch; each prompt's words are where they are alone."""
    model, pipe = ZOO[name], pipes(name)
    prompts = ["cat", "dog, grass, sky, wall, cat, dog, grass, sky, wall"]
    with trace(pipe, model.config, steps=[0]) as t:
        model.run(pipe, list(prompts), generator=seeded())  # Z-Image writes into its list
    length = t.attention().shape[-1]
    for number, prompt in enumerate(prompts):
        words = t.prompt_words(number)
        reader = t.layers.backbone.tokenizers(t.layers.parts, length)["tokenizer"]
        ids = reader(prompt)["input_ids"]
        for word, tokens in words.content.items():
            assert set(reader.decode([ids[token] for token in tokens]).replace(" ", "").split(word)) == {""}


def test_hunyuan_image_with_quoted_text_is_refused(pipes):
    model, pipe = ZOO["hunyuan-image"], pipes("hunyuan-image")
    with pytest.raises(TraceError, match="leave the quotation marks out"), trace(pipe, model.config):
        model.run(pipe, 'cat, "grass"')


def test_hunyuan_image_under_guidance(pipes):
    """Its guider calls the denoiser once per half, the prompt's first."""
    model, pipe = ZOO["hunyuan-image"], pipes("hunyuan-image")
    attentions = []
    for guider in (None, AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=5)):
        pipe.guider = guider
        with trace(pipe, model.config, steps=[0]) as t:
            model.run(pipe, "cat, grass", negative_prompt="wall", generator=seeded())
        attentions.append(t.attention())
    pipe.guider = None
    torch.testing.assert_close(*attentions, rtol=1e-4, atol=1e-6)
