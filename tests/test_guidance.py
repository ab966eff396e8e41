"""Semantic-aware guidance on tiny pipelines: what it does to images, what it leaves behind, and what it refuses."""

import numpy as np
import pytest
import torch
from diffusers import (
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusion_feature import PromptCut, WrongFamily
from goca.guidance import GuidanceError, PromptTokens, SemanticGuidance
from tiny import SD_CONFIG, save_pixart, save_sd, save_sdxl

PROMPTS = ["cat, grass", "a dog"]
SDXL = {
    "version": "xl",
    "img_size": 32,
    "feat_size": 8,
    "t": 100,
    "ref_layer": "up-level0-repeat0-vit-block0-cross-q",
    "self_layers": ["up-level0-repeat{0..2}-vit-block{0,1}-self-map"],
}
PIXART = {
    "version": "pixart-sigma",
    "img_size": 32,
    "feat_size": 4,
    "t": 100,
    "ref_layer": "vit-block1-cross-q",
    "self_layers": ["vit-block{1,2}-self-map"],
}
CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
PIXART_CALL = {"use_resolution_binning": False, "clean_caption": False}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sd_pipeline(folder):
    return StableDiffusionPipeline.from_pretrained(save_sd(folder), safety_checker=None), SD_CONFIG, {}


def sdxl_pipeline(folder):
    return StableDiffusionXLPipeline.from_pretrained(save_sdxl(folder), add_watermarker=False), SDXL, {}


def pixart_pipeline(folder):
    """PixArt-Sigma's kind: not told the picture's size; its output holds a variance."""
    alpha = PixArtAlphaPipeline.from_pretrained(save_pixart(folder))
    torch.manual_seed(0)
    parts = {name: part for name, part in alpha.components.items() if name != "transformer"}
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 3, "cross_attention_dim": 24}
    transformer = PixArtTransformer2DModel(**size, caption_channels=16, sample_size=8, norm_num_groups=4)
    return PixArtSigmaPipeline(transformer=transformer, **parts), PIXART, PIXART_CALL


class Guided:
    """A tiny pipeline, its config, and its call on two prompts."""

    def __init__(self, make, folder):
        self.pipe, self.config, self.more = make(folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser = getattr(self.pipe, "unet", None) or self.pipe.transformer

    def __call__(self, prompt=PROMPTS, **changed):
        noise = {"generator": torch.Generator().manual_seed(1)}
        return self.pipe(prompt, **{**CALL, **self.more, **noise, **changed}).images

    def guide(self, prompt=PROMPTS, *segmentor, **more):
        return SemanticGuidance(self.pipe, self.config, prompt, *segmentor, **more)


@pytest.fixture(scope="module", params=[sd_pipeline, sdxl_pipeline, pixart_pipeline], ids=["sd", "sdxl", "pixart"])
def guided(request, tmp_path_factory):
    return Guided(request.param, tmp_path_factory.mktemp("guided") / "pipeline")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return Guided(sd_pipeline, tmp_path_factory.mktemp("guided") / "sd")


class Everything:
    """A segmentor of one region: what is guided by it is guided plainly."""

    def consumer(self, latents):
        self.features, self.seen = (), 0
        return self

    def attention(self, attention):
        self.seen += 1

    def masks(self, consumer, tokens):
        self.tokens = tokens
        return torch.ones(len(tokens), 1, 2, 2), torch.ones(len(tokens), 1, 2, 2)


@pytest.mark.parametrize("segmentor", ["goca", "s-cfg"])
def test_pictures_are_guided_and_the_pipeline_is_left_as_it_was(guided, segmentor):
    plain, kind = guided(), type(guided.pipe)
    with guided.guide(PROMPTS, segmentor) as guidance:
        shaped = guided()
    grid = guided.config["feat_size"]
    channels = guided.denoiser.config.out_channels
    assert guidance.token_mask.shape[0] == 2 and guidance.token_mask.shape[2:] == (grid, grid)
    assert (guidance.token_mask.sum(1) >= 1).all() and guidance.token_mask.max() == 1
    assert guidance.foreground_mask.shape == (2, 1, grid, grid)
    assert guidance.rate.shape == (2, 1, 8, 8)
    assert guidance.rate.min() > 0.8 - 1e-5 and guidance.rate.max() <= 3
    assert channels == {8: 4, 4: 8}[grid] and np.abs(shaped - plain).max() > 1e-5
    assert type(guided.pipe) is kind
    assert not guided.denoiser._forward_hooks and not guided.denoiser._forward_pre_hooks
    np.testing.assert_array_equal(guided(), plain)


def test_without_a_segmentor_it_is_plain_guidance_bit_for_bit(guided):
    plain = guided()
    with guided.guide(PROMPTS, None) as guidance:
        np.testing.assert_array_equal(guided(), plain)
    assert guidance.rate is None


def test_one_region_of_everything_guides_plainly(guided):
    segmentor = Everything()
    with guided.guide(PROMPTS, segmentor) as guidance:
        np.testing.assert_allclose(guided(), guided(), atol=0)
        shaped = guided()
    assert segmentor.seen > 0
    torch.testing.assert_close(guidance.rate, torch.ones_like(guidance.rate))
    np.testing.assert_allclose(shaped, guided(), atol=2e-5)


def test_pictures_of_one_prompt_stand_side_by_side(sd):
    segmentor = Everything()
    with sd.guide(PROMPTS, segmentor):
        sd(num_images_per_prompt=2)
    words = [len(tokens.words) for tokens in segmentor.tokens]
    assert words[0] == words[1] == 3 and words[2] == words[3] == 2  # "cat, grass", "a dog"
    latents = random(4, 4, 8, 8)
    alone = [Guided.__call__(sd, prompt, latents=latents[i : i + 1]) for i, prompt in enumerate(PROMPTS)]
    with sd.guide(PROMPTS):
        together = sd(latents=latents[:2])
    with sd.guide(PROMPTS[:1]):
        single = sd(PROMPTS[:1], latents=latents[:1])
    np.testing.assert_allclose(together[0], single[0], atol=1e-4)
    assert np.abs(together[1] - alone[1][0]).max() > 1e-5


@pytest.mark.parametrize("form", [True, False])
def test_a_denoiser_called_directly(sd, form):
    latents, states = random(1, 4, 8, 8).repeat(2, 1, 1, 1), random(2, 12, 16, seed=3)
    with torch.no_grad():
        plain = sd.denoiser(latents, 500, states).sample
        with sd.guide("cat, grass", guidance_scale=3.0) as guidance:
            output = sd.denoiser(latents, 500, encoder_hidden_states=states, return_dict=form)
    sample = output.sample if form else output[0]
    torch.testing.assert_close(sample[:1], plain[:1])
    torch.testing.assert_close(sample[1:], plain[:1] + guidance.rate * (plain[1:] - plain[:1]))
    assert guidance.scale == 3.0


def test_the_scale_is_that_of_the_call(sd):
    scales = []
    with sd.guide(PROMPTS) as guidance:
        for scale in (2.0, 9.0):
            sd(guidance_scale=scale, num_inference_steps=1)
            scales.append(guidance.scale)
    assert scales == [2.0, 9.0]
    assert sd.guide(PROMPTS, guidance_scale=6.0).scale == 6.0


def test_a_forward_that_fails_leaves_nothing_behind(sd):
    plain = sd()
    with sd.guide("cat") as guidance:
        with pytest.raises(RuntimeError):
            sd.denoiser(torch.zeros(2, 4, 8, 8), 5, torch.zeros(2, 12, 999))
        assert not guidance.attached.running
        sd("cat", num_inference_steps=1)
    with pytest.raises(KeyboardInterrupt), sd.guide("cat"):
        sd.denoiser.mid_block.register_forward_hook(interrupt)
        sd("cat")
    sd.denoiser.mid_block._forward_hooks.clear()
    np.testing.assert_array_equal(sd(), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sd.denoiser.modules())


def interrupt(*call):
    raise KeyboardInterrupt


def test_a_long_prompt_is_cut_with_a_warning(sd):
    long = "cat, dog, grass, wall, sky, cat, dog, grass"
    with pytest.warns(PromptCut, match="'cat, dog, grass' was cut .* reads 12 tokens"):
        guidance = sd.guide(long)
    assert guidance.tokens == [PromptTokens(tuple(range(1, 11)), 0)]


def test_t5_has_no_first_token(tmp_path):
    guided = Guided(pixart_pipeline, tmp_path / "pixart")
    words = guided.guide("Cat, DOG").tokens[0]
    assert words.words == (0, 1, 2) and words.sentence == 3 and words.kept == words.words
    with guided.guide(PROMPTS) as guidance:
        guided()
    assert guidance.token_mask.shape[1] == 300


# ---- what it cannot work with


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"guidance_scale": 1.0}, "guidance_scale is 1.0"),
        ({"guidance_rescale": 0.7}, "guidance_rescale is 0.7"),
        ({"prompt": ["cat", "cat"]}, "but the pipeline was called with"),
    ],
)
def test_calls_that_are_refused(sd, changed, message):
    with sd.guide(PROMPTS), pytest.raises(GuidanceError, match=message):
        sd(changed.pop("prompt", PROMPTS), **changed)


@pytest.mark.parametrize("batch,message", [(3, "3 latents for 2 prompts"), (2, "2 latents"), (4, "different latents")])
def test_halves_that_cannot_be_told_apart(sd, batch, message):
    with sd.guide(PROMPTS, guidance_scale=5.0), pytest.raises(GuidanceError, match=message):
        sd.denoiser(random(batch, 4, 8, 8), 5, random(batch, 12, 16))


def test_what_cannot_be_guided(sd, tmp_path):
    with pytest.raises(GuidanceError, match="expected one of: goca, s-cfg"):
        sd.guide(PROMPTS, "gocca")
    with pytest.raises(GuidanceError, match="contains no words"):
        sd.guide(["cat", " "])
    with pytest.raises(GuidanceError, match="expected more than 1"):
        sd.guide(PROMPTS, guidance_scale=0.5)
    with sd.guide(PROMPTS), pytest.raises(GuidanceError, match="already guided by regions"), sd.guide(PROMPTS):
        pass
    folder = save_sd(tmp_path / "sd", time_cond_proj_dim=8)
    distilled = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with pytest.raises(GuidanceError, match="distilled"):
        SemanticGuidance(distilled, SD_CONFIG, "cat")
    with pytest.raises(WrongFamily):
        SemanticGuidance(sd.pipe, PIXART, "cat")
