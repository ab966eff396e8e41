"""The guidance rate: closed forms, properties, and recorded rates and masks."""

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)
from goca.guidance import GuidanceError, SemanticGuidance, guidance_rate
from goca.guidance.rate import smooth
from hypothesis import given, settings
from hypothesis import strategies as st


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
