"""Semantic-aware guidance: the rate by closed forms and records, masks by records, the context on tiny pipelines."""

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
from goca.guidance import GuidanceError, PromptTokens, SemanticGuidance, guidance_rate
from goca.guidance.rate import smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SD_CONFIG, save_pixart, save_sd, save_sdxl


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the rate


def test_two_regions_get_the_same_mean_change():
    text = torch.zeros(1, 4, 4, 8)
    text[..., :4], text[..., 4:] = 1.0, 2.0  # |change| is 2 on the left, 4 on the right
    tokens = torch.zeros(1, 3, 4, 8)
    tokens[:, 0, :, :4] = tokens[:, 2, :, 4:] = 1  # the second token owns nothing
    rate = guidance_rate(torch.zeros_like(text), text, tokens, tokens[:, :1] * 0 + 1, 2.0)
    assert rate.shape == (1, 1, 4, 8)
    torch.testing.assert_close(rate[0, 0, 0, [0, 7]], torch.tensor([3 / 2, 0.8]))  # 3/2, and 3/4 below the lowest
    strong = guidance_rate(torch.zeros_like(text), text, tokens, tokens[:, :1] * 0 + 1, 15.0)
    assert strong.max() == pytest.approx(1.0)  # 15 / scale


def test_changes_as_small_as_the_guard_against_zero_are_damped():
    text = torch.zeros(1, 1, 4, 8)
    text[..., :4], text[..., 4:] = 1e-8, 8e-8
    tokens = torch.zeros(1, 2, 4, 8)
    tokens[:, 0, :, :4] = tokens[:, 1, :, 4:] = 1
    rate = guidance_rate(torch.zeros_like(text), text, tokens, tokens[:, :1] * 0 + 1, 2.0)
    assert float(rate[0, 0, 0, 0]) == pytest.approx(4.5 / (1 + 1))  # the mean change by that of the left and 1e-8


def test_one_region_of_everything_is_plain_guidance():
    everything = torch.ones(2, 1, 3, 3)
    rate = guidance_rate(random(2, 4, 6, 6), random(2, 4, 6, 6, seed=1), everything, everything, 5)
    torch.testing.assert_close(rate, torch.ones(2, 1, 6, 6))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1.01, 30), factor=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_rates_are_bounded_and_do_not_know_the_units(scale, factor, seed):
    uncond, text = random(2, 4, 8, 8, seed=seed), random(2, 4, 8, 8, seed=seed + 1)
    tokens = torch.nn.functional.one_hot(random(2, 4, 4, seed=seed).mul(2).long() % 5, 5).permute(0, 3, 1, 2).float()
    foreground = (random(2, 1, 4, 4, seed=seed) > 0).float()
    rate = guidance_rate(uncond, text, tokens, foreground, scale)
    top = min(3.0, 15 / scale)
    assert rate.max() <= top + 1e-5 and rate.min() >= min(0.8, top) - 1e-5
    torch.testing.assert_close(
        guidance_rate(factor * uncond, factor * text, tokens, foreground, scale), rate, atol=1e-4, rtol=1e-4
    )


def test_recorded_rates(goldens):
    recorded = np.load(goldens / "set5_scfg/scfg.npz")
    parts = [torch.from_numpy(recorded[f"rate/same_res/{name}"]) for name in ("uncond", "text", "ca_mask", "fore_mask")]
    for scale in (2.0, 5.0, 7.5):
        np.testing.assert_allclose(guidance_rate(*parts, scale), recorded[f"rate/same_res/gs{scale}/rate"], atol=1e-5)


def test_recorded_smoothing(goldens):
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    kernel = np.load(goldens / "set5_scfg/scfg.npz")["gaussian_kernel_3x3_sigma0.5"]
    np.testing.assert_allclose(smooth(point)[0, 0, 1:4, 1:4], kernel, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.0, -3.0, float("nan")])
def test_no_guidance_to_be_shaped(scale):
    masks = torch.ones(1, 1, 2, 2)
    with pytest.raises(GuidanceError, match="guidance_scale is"):
        guidance_rate(random(1, 4, 2, 2), random(1, 4, 2, 2), masks, masks, scale)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 2, 2), (1, 4, 2, 3), (1, 3, 2, 2), (1, 1, 2, 2)],
        [(1, 4, 2, 2), (1, 4, 2, 2), (2, 3, 2, 2), (2, 1, 2, 2)],
        [(1, 4, 2, 2), (1, 4, 2, 2), (1, 3, 2, 2), (1, 2, 2, 2)],
        [(1, 4, 2, 2), (1, 4, 2, 2), (3, 2, 2), (1, 1, 2, 2)],
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(GuidanceError, match="expected two outputs"):
        guidance_rate(*(torch.ones(shape) for shape in shapes), 5)


# ---- masks, against records

VANILLA = {"head_method": "average", "layer_method": "vanilla", "rescale_method": "per-token renorm+"}


@pytest.mark.parametrize("variant", ["default", "vanilla"])
def test_recorded_masks_and_rates(goldens, variant):
    recorded, place, timestep = np.load(goldens / "set5_scfg/scfg.npz"), f"e2e/step0/{variant}", 981
    pipe = StableDiffusionPipeline.from_pretrained(goldens / "pipelines/sd15", safety_checker=None)
    config = {"of": "sd15", "img_size": 256, "feat_size": 32, "protocol": "released"} | (
        VANILLA if variant == "vanilla" else {}
    )
    prompt = "a photo of a cat on the grass near a wall"
    latents = torch.from_numpy(recorded["e2e/latents"]).repeat(2, 1, 1, 1)
    embeds = torch.from_numpy(recorded["e2e/prompt_embeds_uncond_cond"])
    with torch.no_grad(), SemanticGuidance(pipe, config, prompt, guidance_scale=7.5) as guidance:
        uncond, guided = pipe.unet(latents, timestep, encoder_hidden_states=embeds).sample
    masks = [torch.from_numpy(recorded[f"{place}/{name}"]) for name in ("ca_mask", "fore_mask")]
    for ours, theirs in zip((guidance.token_mask, guidance.foreground_mask), masks):
        assert ours.shape == theirs.shape
        assert (ours != theirs).sum() <= 2  # one pixel, where two tokens are 7e-6 apart
    equal = torch.equal(guidance.token_mask, masks[0].float())
    rates = [guidance.rate] if equal else []
    theirs = torch.from_numpy(recorded["e2e/step0/noise_pred"])
    rate = guidance_rate(theirs[:1], theirs[1:], *masks, 7.5)
    for each in (*rates, rate):
        np.testing.assert_allclose(each, recorded[f"{place}/rate_gs7.5"], atol=1e-4)
    np.testing.assert_allclose(
        guidance_rate(theirs[:1], theirs[1:], *masks, 5.0), recorded[f"{place}/rate_gs5.0"], atol=1e-4
    )
    torch.testing.assert_close(uncond, theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided, theirs[0] + guidance.rate[0] * (theirs[1] - theirs[0]), atol=1e-4, rtol=1e-4)


# ---- the context, on tiny pipelines

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
        assert guidance.running is None
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
        ({"prompt": ["cat", "cat"]}, "the pipeline is called with"),
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
    with pytest.raises(GuidanceError, match="there are: goca, s-cfg"):
        sd.guide(PROMPTS, "gocca")
    with pytest.raises(GuidanceError, match="has no words"):
        sd.guide(["cat", " "])
    with pytest.raises(GuidanceError, match="at 1 or below"):
        sd.guide(PROMPTS, guidance_scale=0.5)
    with sd.guide(PROMPTS), pytest.raises(GuidanceError, match="guided by regions already"), sd.guide(PROMPTS):
        pass
    folder = save_sd(tmp_path / "sd", time_cond_proj_dim=8)
    distilled = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with pytest.raises(GuidanceError, match="distilled"):
        SemanticGuidance(distilled, SD_CONFIG, "cat")
    with pytest.raises(WrongFamily):
        SemanticGuidance(sd.pipe, PIXART, "cat")
