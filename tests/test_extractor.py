"""The extractor: nothing changes under the tap, every attention is seen once, and refusals say what to do."""

import pytest
import torch
from calls import call
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusion_feature import (
    ExtractorError,
    FeatureExtractor,
    PromptCut,
    expand_layers,
)
from diffusion_feature.attention import grid_of
from diffusion_feature.latents import preprocess
from diffusion_feature.noise import variance_preserving
from PIL import Image
from tiny import Everything

CROSS, SELF = "up-level0-repeat1-vit-block0-cross-map", "down-level0-repeat0-vit-block0-self-map"


@pytest.fixture(scope="module")
def fx(tiny_sd):
    return FeatureExtractor(version="mini", img_size=32, pipeline=tiny_sd, device="cpu")


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_output_is_the_same_to_the_bit(fx):
    bare, everything = call(fx), Everything("mid-vit-block0-cross-q")
    with fx.tap(everything, (8, 8)):
        tapped = call(fx)
    assert torch.equal(bare, tapped)
    assert torch.equal(bare, call(fx))  # and nothing is left behind
    assert not any(layer.module._forward_hooks or layer.module._forward_pre_hooks for layer in fx.layers)


@pytest.mark.parametrize("hw", [(8, 8), (8, 12), (7, 5)])
def test_every_attention_is_seen_once_in_order(fx, hw):
    everything = Everything("down-level1-repeat0-vit-block0-out", "up-level1-repeat0-res-out")
    with fx.tap(everything, hw):
        call(fx, hw)
    seen = [f"{a.layer.block}-{a.layer.layout}-map" for a in everything.attentions]
    assert seen == [name for name in fx.layer_ids() if name.endswith("-map")]
    assert len(seen) == 22
    half = ((hw[0] + 1) // 2, (hw[1] + 1) // 2)
    assert {a.grid for a in everything.attentions} == {hw, half}
    assert everything.dense["down-level1-repeat0-vit-block0-out"].shape == (1, 24, *half)
    for a in everything.attentions:
        torch.testing.assert_close(a.probabilities() @ a.value, a.result)


def test_layer_ids_of_the_published_naming(goldens):
    import json

    fx = FeatureExtractor(version="1-5", img_size=256, pipeline=goldens / "pipelines" / "sd15", device="cpu")
    config = json.loads((goldens / "set1_end_to_end" / "sd15" / "config.json").read_text())
    ids = fx.layer_ids()
    assert expand_layers("all", ids, "-cross-map") == config["layer"]
    assert {config["ref_layer"], *config["space_layer"]} <= set(ids)


def test_extract_returns_maps_and_features(tiny_sd, picture):
    layers = [
        CROSS,
        SELF,
        "mid-vit-block0-cross-q",
        "mid-vit-block0-cross-v",
        "mid-vit-block0-attn-out",
        "mid-vit-block0-out",
        "up-level1-repeat2-vit-out",
        "down-level0-downsampler-out",
    ]
    fx = FeatureExtractor(layers, "mini", img_size=(32, 48), pipeline=tiny_sd)
    found = fx.extract("cat, sky", picture, t=50, seed=3)
    assert set(found) == set(layers)
    assert found[CROSS].shape == (1, 2, 4 * 6, 12)  # the mid and the deepest level stand on half the latents' grid
    assert found[SELF].shape == (1, 2, 8 * 12, 8 * 12)
    for name in (CROSS, SELF):
        torch.testing.assert_close(found[name].sum(-1), torch.ones(found[name].shape[:-1]))
    assert found["mid-vit-block0-cross-q"].shape == (1, 24, 4, 6)
    assert found["mid-vit-block0-cross-v"].shape == (1, 12, 24)
    assert found["up-level1-repeat2-vit-out"].shape == (1, 16, 8, 12)
    again = fx.extract("cat, sky", picture, t=50, seed=3)
    assert all(torch.equal(found[name], again[name]) for name in layers)
    other = fx.extract("cat, sky", picture, t=50, seed=4)
    assert not torch.equal(found[CROSS], other[CROSS])


def test_several_images_are_extracted_in_batches(tiny_sd, picture):
    layers = [CROSS, "mid-vit-block0-cross-q"]
    fx = FeatureExtractor(layers, "mini", img_size=32, pipeline=tiny_sd, device="cpu")
    images, prompts = [picture, picture.rotate(90), picture.rotate(180)], ["cat", "dog, sky", "cat, wall"]
    single = [fx.extract(*each) for each in zip(prompts, images)]
    for size in (1, 2, 3):
        together = fx.extract(prompts, images, batch_size=size)
        assert list(together) == list(single[0])
        for name in layers:
            torch.testing.assert_close(together[name], torch.cat([each[name] for each in single]), atol=1e-5, rtol=1e-4)
    alone = fx.extract(["cat"], [picture])[CROSS]
    torch.testing.assert_close(fx.extract("cat", images, batch_size=2)[CROSS][:1], alone)
    with pytest.raises(ExtractorError, match="3 images and 2 prompts"):
        fx.extract(prompts[:2], images)


def test_noise_of_a_batch_is_given_for_all_or_one_each(tiny_sd, picture):
    fx = FeatureExtractor([CROSS], "mini", img_size=32, pipeline=tiny_sd, device="cpu")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    each = fx.extract("cat", [picture] * 2, noise=noise)[CROSS]
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(fx.extract("cat", [picture] * 2, noise=noise[:1], batch_size=2)[CROSS][1:], each[:1])


def test_features_of_the_unets_own_steps(tiny_sd, picture):
    """in -> conv_in -> blocks -> conv_out, and what a residual block adds is its output less its input."""
    layers = [
        "in",
        "after-conv-in",
        "down-level0-repeat0-res-increment",
        "down-level0-repeat0-res-out",
        "mid-vit-block0-ffn-inner",
        "out",
    ]
    fx = FeatureExtractor(layers, "mini", img_size=32, pipeline=tiny_sd, device="cpu")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    found = fx.extract("cat", picture, noise=noise)
    assert list(found) == layers
    with torch.no_grad():
        torch.testing.assert_close(fx.denoiser.conv_in(found["in"]), found["after-conv-in"])
    block = fx.denoiser.down_blocks[0].resnets[0]
    assert block.conv_shortcut is None
    added = found["down-level0-repeat0-res-out"] - found["after-conv-in"]
    torch.testing.assert_close(added, found["down-level0-repeat0-res-increment"], atol=1e-5, rtol=1e-4)
    ffn = fx.denoiser.mid_block.attentions[0].transformer_blocks[0].ff
    assert found["mid-vit-block0-ffn-inner"].shape[1] == ffn.net[2].in_features
    assert found["out"].shape == noise.shape


def test_bfloat16_features_come_out_in_float32(tiny_sd, picture):
    fx = FeatureExtractor(["mid-vit-block0-out"], "mini", img_size=32, pipeline=tiny_sd, device="cpu", dtype="bfloat16")
    feature = fx.extract("cat", picture)["mid-vit-block0-out"]
    assert feature.dtype == torch.float32
    assert feature.numpy().shape == (1, 24, 4, 4)


def test_a_pipeline_object_is_used_as_it_is(tiny_sd, picture):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None, feature_extractor=None)
    pipe.scheduler.set_timesteps(7)
    steps = pipe.scheduler.timesteps.clone()
    from_object = FeatureExtractor([CROSS], "mini", img_size=32, pipeline=pipe)
    from_folder = FeatureExtractor([CROSS], "mini", img_size=32, pipeline=str(tiny_sd), device="cpu")
    maps = [fx.extract("dog", picture, noise_rule="pipeline")[CROSS] for fx in (from_object, from_folder)]
    torch.testing.assert_close(*maps)
    assert torch.equal(pipe.scheduler.timesteps, steps)


def test_patterns():
    ids = [f"vit-block{n}-cross-map" for n in range(12)] + ["vit-block0-self-map"]
    assert expand_layers("all", ids, "-cross-map") == ids[:12]
    assert expand_layers("vit-block{9..11}-cross-map", ids, "-cross-map") == ids[9:12]
    assert expand_layers(["vit-block{3,1}-cross-map", "vit-block1-cross-map"], ids, "") == [ids[3], ids[1]]


# ---- noise and pictures


def test_timesteps_of_the_two_rules():
    pndm = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    level = variance_preserving(pndm, 100, "pipeline")
    assert level.timestep == 101
    assert (level.signal, level.noise) == pytest.approx((0.944976, 0.327139), abs=1e-6)
    assert variance_preserving(pndm, 100, "nominal").timestep == 100
    assert level.signal**2 + level.noise**2 == pytest.approx(1)
    assert variance_preserving(DDIMScheduler(), 1, "pipeline").timestep == 0
    last = variance_preserving(pndm, 1000, "pipeline")  # one beyond the trained ones: as noisy as the last of them
    assert (last.timestep, last.signal) == (1000, pytest.approx(float(pndm.alphas_cumprod[999]) ** 0.5))
    with pytest.raises(ExtractorError, match=r"t is 1000; the nominal rule of this scheduler allows 0\.\.999"):
        variance_preserving(pndm, 1000, "nominal")
    with pytest.raises(ExtractorError, match="expected one of: nominal, pipeline"):
        variance_preserving(pndm, 100, "other")


def test_palette_pictures_are_stretched_by_nearest_neighbour(picture):
    palette = picture.quantize(4)
    values = set(preprocess(palette, 96).flatten().tolist())
    assert values <= {(level / 255) * 2 - 1 for level in palette.getpalette()} | values & set(
        preprocess(palette.convert("RGB"), (40, 50)).flatten().tolist()
    )
    assert preprocess(picture, (16, 24)).shape == (3, 16, 24)


def test_grid_of_tokens():
    assert grid_of(12, (6, 8)) == (3, 4)
    assert grid_of(20, (7, 10)) == (4, 5)
    with pytest.raises(ExtractorError, match="13 image tokens"):
        grid_of(13, (6, 8))


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(fx, picture):
    with pytest.warns(PromptCut, match="cat, dog, grass' was cut from .*: the text encoder reads 12 tokens"):
        fx.extract("cat, dog, grass, wall, sky, cat, dog, grass", picture)


def test_noise_of_another_shape(fx, picture):
    with pytest.raises(ExtractorError, match=r"noise is \(1, 4, 4, 4\), the latents are \(1, 4, 8, 8\)"):
        fx.extract("cat", picture, noise=torch.zeros(1, 4, 4, 4))
