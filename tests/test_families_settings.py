"""The published settings: layers that are there at full size, timesteps, text lengths; and what a vanilla config is."""

import diffusers
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusion_feature import ExtractorError, expand_layers
from diffusion_feature.families import VERSIONS
from diffusion_feature.families.hunyuan import centred
from goca.config import load_config, names

VANILLA = {"head_method": "average", "layer_method": "vanilla", "rescale_method": "per-token renorm+"}

SDXL = {
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
# what the published weights' configurations say about blocks; widths matter nothing here
SHAPES = {
    "1-5": {},
    "2-1": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "xl": SDXL,
    "playground-v2": SDXL,
    "pixart-alpha": {},
    "pixart-sigma": {},
    "pixart-sigma-512": {},
    "hunyuan": {"num_layers": 40, "in_channels": 4, "patch_size": 2, "hidden_size": 1408},
    "flux": {"guidance_embeds": True},
    "sd3": {"num_layers": 24},
    "sd3.5": {"num_layers": 24, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
}
# config -> image side, t, cross layers, self layers, affinity order
PUBLISHED = {
    "sd15": (512, 100, 16, 3, 2),
    "sd21": (768, 100, 16, 3, 2),
    "sdxl": (1024, 100, 70, 7, 2),
    "playground-v2": (1024, 100, 70, 7, 2),
    "pixart-alpha": (512, 100, 28, 8, 5),
    "pixart-sigma": (1024, 100, 28, 8, 5),
    "pixart-sigma-512": (512, 100, 8, 8, 5),
    "hunyuan": (1024, 100, 10, 10, 4),
    "flux": (1024, 150, 57, 2, 2),
    "sd3": (1024, 150, 24, 2, 2),
    "sd35-medium": (1024, 150, 24, 2, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_at_full_size(name):
    config = load_config(name)
    family = VERSIONS[config.version]
    with torch.device("meta"):
        denoiser = getattr(diffusers, family.kind)(**SHAPES[config.version])
    assert family.accepts(denoiser)
    ids = [layer_id for layer in family.layers(denoiser) for layer_id in layer.maps]
    assert len(ids) == len(set(ids))
    cross = expand_layers(config.cross_layers, ids, "-cross-map")
    own = expand_layers(config.self_layers, ids, "-self-map")
    assert (config.img_size, config.t, len(cross), len(own), config.affinity_order) == PUBLISHED[name]
    assert config.ref_layer in family.features(denoiser)
    assert {layer.replace("-cross-", "-self-") for layer in cross} <= set(ids)  # each has the self map it is judged by


def test_vanilla_is_its_model_with_three_overrides():
    vanilla = [name for name in names() if name.endswith("-vanilla")]
    assert {"sd15", "sdxl", "pixart-alpha", "pixart-sigma", "hunyuan", "flux"} <= {name[:-8] for name in vanilla}
    for name in vanilla:
        assert load_config(name) == load_config(name[:-8], **VANILLA)


# ---- noise


LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "steps_offset": 1, "timestep_spacing": "leading"}
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
SIDE = (128, 128)  # latents of 1024 x 1024


@pytest.mark.parametrize("version, scheduler, t, latents, timestep, signal, noise", [
    ("xl", EulerDiscreteScheduler(beta_end=0.012, **SCALED), 100, SIDE, 100, 0.945634, 0.325234),
    ("pixart-alpha", DPMSolverMultistepScheduler(**LINEAR), 100, SIDE, 100, 0.946119, 0.323819),
    ("hunyuan", DDPMScheduler(beta_end=0.03, **SCALED), 100, SIDE, 81, 0.950545, 0.310587),
    ("flux", FLUX, 150, (32, 32), 263.8494, 1 - 0.2638494, 0.2638494),
    ("flux", FLUX, 150, (64, 64), 289.862, 1 - 0.289862, 0.289862),
    ("flux", FLUX, 150, SIDE, 407.078, 1 - 0.407078, 0.407078),
])  # fmt: skip
def test_noise_of_the_released_evaluation(version, scheduler, t, latents, timestep, signal, noise):
    level = VERSIONS[version].noise_level(scheduler, t, "pipeline", latents)
    assert level.timestep == pytest.approx(timestep, abs=1e-3)
    assert (level.signal, level.noise) == pytest.approx((signal, noise), abs=2e-6)


@pytest.mark.parametrize("version", ["flux", "sd3"])
def test_noise_that_t_names(version):
    level = VERSIONS[version].noise_level(FLUX, 150, "nominal", SIDE)
    assert (level.timestep, level.signal, level.noise) == pytest.approx((150, 0.85, 0.15))


def test_noise_out_of_range():
    with pytest.raises(ExtractorError, match=r"t is 35; the pipeline rule of this scheduler takes 36\.\.1000"):
        VERSIONS["flux"].noise_level(FLUX, 35, "pipeline", SIDE)
    with pytest.raises(ExtractorError, match=r"t is 19; the pipeline rule of this scheduler takes 20\.\.1000"):
        VERSIONS["hunyuan"].noise_level(DDPMScheduler(), 19, "pipeline", SIDE)
    with pytest.raises(ExtractorError, match="there are: nominal, pipeline"):
        VERSIONS["flux"].noise_level(FLUX, 150, "other", SIDE)


def test_the_grid_of_rotary_places_is_centred():
    assert centred((64, 64), 32) == ((0, 0), (32, 32))
    assert centred((32, 64), 32) == ((8, 0), (24, 32))
    assert centred((64, 48), 32) == ((0, 4), (32, 28))
