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
from diffusion_feature.patterns import expand_braces
from goca.config import load_config, names

VANILLA = {"head_method": "average", "layer_method": "vanilla", "rescale_method": "per-token renorm+"}

SDXL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
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
    "sd21-base": (512, 100, 16, 3, 2),
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


def test_vanilla_is_its_model_with_three_overrides_and_where_published_its_own_layers():
    vanilla = [name for name in names() if name.endswith("-vanilla")]
    assert {"sd15", "sdxl", "pixart-alpha", "pixart-sigma", "hunyuan", "flux"} <= {name[:-8] for name in vanilla}
    for name in vanilla:
        assert load_config(name) == load_config(name[:-8], **VANILLA | HAND_PICKED.get(name, {}))


# ---- every value of the paper's own settings: fields of configs/model, "all" or the numbers of layers


def blocks(numbers, kind):
    return [f"vit-block{number}-{kind}-map" for number in numbers]


SD15 = {
    "version": "1-5",
    "pipeline": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "img_size": 512,
    "feat_size": 64,
    "t": 100,
    "head_method": "dot-product w/o clamp",
    "layer_method": "dot-product similarity",
    "rescale_method": "sum-1 rescaling + per-token renorm+",
    "ref_layer": "up-level2-repeat1-vit-block0-cross-q",
    "cross_layers": "all",
    "affinity_order": 2,
    "refine": ("affinity",),
    "self_layers": [
        "up-level3-repeat0-vit-block0-self-map",
        "up-level3-repeat1-vit-block0-self-map",
        "down-level0-repeat1-vit-block0-self-map",
    ],
}
BASELINE = (
    SD15
    | VANILLA
    | {
        "cross_layers": [
            f"{place}-vit-block0-cross-map"
            for place in (
                "down-level2-repeat0",
                "down-level2-repeat1",
                "mid",
                "up-level1-repeat0",
                "up-level1-repeat1",
                "up-level1-repeat2",
                "up-level2-repeat0",
                "up-level2-repeat1",
            )
        ],
    }
)
SDXL_SETTING = SD15 | {
    "version": "xl",
    "pipeline": "stabilityai/stable-diffusion-xl-base-1.0",
    "img_size": 1024,
    "ref_layer": "up-level1-repeat0-vit-block0-cross-q",
    "self_layers": [
        f"{place}-self-map"
        for place in (
            "up-level1-repeat0-vit-block0",
            "up-level1-repeat0-vit-block1",
            "up-level1-repeat1-vit-block0",
            "up-level1-repeat1-vit-block1",
            "up-level1-repeat2-vit-block0",
            "down-level1-repeat0-vit-block0",
            "down-level1-repeat0-vit-block1",
        )
    ],
}
ALPHA = SD15 | {
    "version": "pixart-alpha",
    "pipeline": "PixArt-alpha/PixArt-XL-2-512x512",
    "ref_layer": "vit-block13-cross-q",
    "self_layers": blocks(range(10, 18), "self"),
    "affinity_order": 5,
}
SIGMA = ALPHA | {
    "version": "pixart-sigma",
    "pipeline": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "img_size": 1024,
}
HUNYUAN = SD15 | {
    "version": "hunyuan",
    "pipeline": "Tencent-Hunyuan/HunyuanDiT-Diffusers",
    "img_size": 1024,
    "head_method": "average",
    "ref_layer": "vit-block25-cross-q",
    "affinity_order": 4,
    "cross_layers": blocks(range(20, 30), "cross"),
    "self_layers": blocks(range(20, 30), "self"),
}
FLUX_SETTING = SD15 | {
    "version": "flux",
    "pipeline": "black-forest-labs/FLUX.1-dev",
    "img_size": 1024,
    "t": 150,
    "head_method": "average",
    "ref_layer": "vit-block27-attn-out",
    "self_layers": blocks([12, 18], "self"),
}
HAND_PICKED = {
    "flux-vanilla": {
        "cross_layers": ("vit-block{8,28,47}-cross-map",),
        "self_layers": ("vit-block{8,28,47}-self-map",),
    },
    "pixart-sigma-vanilla": {"cross_layers": ("vit-block{10..17}-cross-map",)},
}
PAPER = {
    "sd15": SD15,
    "sd15-baseline": BASELINE,
    "fttm": BASELINE | {"refine": ("affinity", "dense_crf")},
    "sdxl": SDXL_SETTING,
    "pixart-alpha": ALPHA,
    "pixart-sigma": SIGMA,
    "hunyuan": HUNYUAN,
    "flux": FLUX_SETTING,
    "sd15-vanilla": SD15 | VANILLA,
    "sdxl-vanilla": SDXL_SETTING | VANILLA,
    "pixart-alpha-vanilla": ALPHA | VANILLA,
    "pixart-sigma-vanilla": SIGMA | VANILLA | {"cross_layers": blocks(range(10, 18), "cross")},
    "hunyuan-vanilla": HUNYUAN | VANILLA,
    "flux-vanilla": FLUX_SETTING
    | VANILLA
    | {"cross_layers": blocks([8, 28, 47], "cross"), "self_layers": blocks([8, 28, 47], "self")},
}


def written_out(layers):
    """A config's layers as a sorted list of ids; "all" stays."""
    return layers if layers == "all" else sorted(layer for each in layers for layer in expand_braces(each))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_own_settings(name):
    found, expected = load_config(name).to_dict(), dict(PAPER[name])
    for layers in ("cross_layers", "self_layers"):
        found[layers], expected[layers] = written_out(found[layers]), written_out(expected[layers])
    assert {field: found[field] for field in expected} == expected


# ---- noise


LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "steps_offset": 1, "timestep_spacing": "leading"}
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
SIDE = (128, 128)  # latents of 1024 x 1024


@pytest.mark.parametrize(
    "version, scheduler, t, latents, timestep, signal, noise",
    [
        ("xl", EulerDiscreteScheduler(beta_end=0.012, **SCALED), 100, SIDE, 100, 0.945634, 0.325234),
        ("pixart-alpha", DPMSolverMultistepScheduler(**LINEAR), 100, SIDE, 100, 0.946119, 0.323819),
        ("hunyuan", DDPMScheduler(beta_end=0.03, **SCALED), 100, SIDE, 81, 0.950545, 0.310587),
        ("flux", FLUX, 150, (32, 32), 263.8494, 1 - 0.2638494, 0.2638494),
        ("flux", FLUX, 150, (64, 64), 289.862, 1 - 0.289862, 0.289862),
        ("flux", FLUX, 150, SIDE, 407.078, 1 - 0.407078, 0.407078),
    ],
)
def test_noise_of_the_released_evaluation(version, scheduler, t, latents, timestep, signal, noise):
    level = VERSIONS[version].noise_level(scheduler, t, "pipeline", latents)
    assert level.timestep == pytest.approx(timestep, abs=1e-3)
    assert (level.signal, level.noise) == pytest.approx((signal, noise), abs=2e-6)


@pytest.mark.parametrize("version", ["flux", "sd3"])
def test_noise_that_t_names(version):
    level = VERSIONS[version].noise_level(FLUX, 150, "nominal", SIDE)
    assert (level.timestep, level.signal, level.noise) == pytest.approx((150, 0.85, 0.15))


def test_noise_out_of_range():
    with pytest.raises(ExtractorError, match=r"t is 35; the pipeline rule of this scheduler allows 36\.\.1000"):
        VERSIONS["flux"].noise_level(FLUX, 35, "pipeline", SIDE)
    with pytest.raises(ExtractorError, match=r"t is 19; the pipeline rule of this scheduler allows 20\.\.1000"):
        VERSIONS["hunyuan"].noise_level(DDPMScheduler(), 19, "pipeline", SIDE)
    with pytest.raises(ExtractorError, match="expected one of: nominal, pipeline"):
        VERSIONS["flux"].noise_level(FLUX, 150, "other", SIDE)


def test_the_grid_of_rotary_places_is_centred():
    assert centred((64, 64), 32) == ((0, 0), (32, 32))
    assert centred((32, 64), 32) == ((8, 0), (24, 32))
    assert centred((64, 48), 32) == ((0, 4), (32, 28))
