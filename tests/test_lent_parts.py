"""The VAE of a pipeline that is lent, and what its denoiser comes with: it works, or is refused with what helps."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderTiny
from diffusion_feature import ExtractorError, FeatureExtractor, WrongFamily
from families import FAMILIES
from lent import PICTURE, follow, load, score_maps, state, use_guidance, use_segmenter, use_trace
from tiny import SD_CONFIG


@pytest.fixture
def sd(tiny_sd):
    return load(tiny_sd)


# ---- the VAE


def test_a_half_precision_vae_that_overflows(tmp_path):
    """SDXL's says so itself (force_upcast): it is encoded in float32, and is float16 again for the pipeline."""
    pipe = load(tiny.save_sdxl(tmp_path / "sdxl"))
    assert pipe.vae.config.force_upcast
    expected = score_maps(pipe, FAMILIES["sdxl"].config)
    pipe.vae.half()
    before = state(pipe)
    found = score_maps(pipe, FAMILIES["sdxl"].config)
    assert state(pipe) == before and pipe.vae.dtype == torch.float16
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_a_vae_whose_latents_are_not_finite_in_half_precision(sd):
    """One that does not say it: seen in what it makes."""
    sd.vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        sd.vae.quant_conv.weight.mul_(3e5)
        sd.vae.register_to_config(scaling_factor=sd.vae.config.scaling_factor / 3e5)
    expected = score_maps(sd, SD_CONFIG)
    for weight in sd.vae.parameters():
        weight.data = weight.data.clamp(-6e4, 6e4)
    sd.vae.half()
    before = state(sd)
    assert bool(score_maps(sd, SD_CONFIG).isfinite().all()) and bool(expected.isfinite().all())
    assert state(sd) == before
    sd.vae.quant_conv.weight.data.fill_(float("nan"))
    with pytest.raises(ExtractorError, match=r"not finite numbers: .*`pipe.vae.to\(torch.float32\)`"):
        score_maps(sd, SD_CONFIG)


def test_statistics_of_a_vae_s_channels(sd):
    """As SDXL's pipelines use them: (latents - mean) * scale / std."""
    fx = FeatureExtractor((), "1-5", img_size=32, pipeline=sd)
    plain = fx.encode_images([PICTURE], "mean", [torch.Generator()])
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]
    sd.vae.register_to_config(latents_mean=mean, latents_std=std)
    scale = sd.vae.config.scaling_factor
    mean, std = (torch.tensor(each).view(1, 4, 1, 1) for each in (mean, std))
    found = fx.encode_images([PICTURE], "mean", [torch.Generator()])
    torch.testing.assert_close(found, (plain / scale - mean) * scale / std)


def test_a_tiny_autoencoder(sd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sd.vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        ).eval()
    fx = FeatureExtractor((), "1-5", img_size=32, pipeline=sd)
    for posterior in ("mean", "sample"):
        latents = fx.encode_images([PICTURE], posterior, [torch.Generator()])
        pixels = torch.from_numpy(np.array(PICTURE.resize((32, 32)))).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.testing.assert_close(latents, sd.vae.encode(pixels).latents.detach() * sd.vae.config.scaling_factor)
    assert bool(score_maps(sd, SD_CONFIG).isfinite().all())


def test_slicing_and_tiling(sd):
    expected = score_maps(sd, SD_CONFIG)
    sd.vae.enable_slicing()
    sd.vae.enable_tiling()
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)


# ---- what denoisers come with


def test_fused_projections(sd):
    config = SD_CONFIG | {"ref_layer": "up-level1-repeat1-vit-out"}  # a feature that is no projection
    expected = score_maps(sd, config)
    sd.unet.fuse_qkv_projections()
    torch.testing.assert_close(score_maps(sd, config), expected, rtol=0, atol=1e-5)


def test_free_u(sd):
    plain = score_maps(sd, SD_CONFIG)
    sd.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert bool(score_maps(sd, SD_CONFIG).isfinite().all())
    sd.disable_freeu()
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), plain)


def test_a_compiled_denoiser_is_run_as_it_is_written(sd):
    expected = score_maps(sd, SD_CONFIG)
    sd.unet.compile(backend="eager")
    for block in sd.unet.mid_block.attentions[0].transformer_blocks:
        block.compile(backend="eager")
    call = sd.unet._compiled_call_impl
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)
    use_trace(sd, "sd")
    use_guidance(sd, "sd")
    assert sd.unet._compiled_call_impl is call


def test_a_denoiser_in_a_compiled_wrapper(sd):
    """Segmenting takes what is wrapped; a pipeline that runs the wrapper cannot be looked at."""
    expected = score_maps(sd, SD_CONFIG)
    sd.unet = torch.compile(sd.unet, backend="eager")
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)
    for use in (use_trace, use_guidance):
        with pytest.raises(WrongFamily, match="wrapped in OptimizedModule") as refused:
            use(sd, "sd")
    follow(refused, sd)
    use_trace(sd, "sd")


@pytest.mark.parametrize("channels", [8, 9])
def test_a_denoiser_with_more_inputs(sd, channels):
    sd.unet = tiny.unet(in_channels=channels, out_channels=4)
    with pytest.raises(WrongFamily, match=f"takes {channels} channels, the VAE makes 4: an inpainting"):
        score_maps(sd, SD_CONFIG)


def test_an_ip_adapter(sd):
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    expected = score_maps(sd, SD_CONFIG)
    projection = ImageProjection(image_embed_dim=16, cross_attention_dim=16, num_image_text_embeds=4)
    sd.unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    sd.unet.config.encoder_hid_dim_type = "ip_image_proj"
    for use in (use_segmenter, use_trace, use_guidance):
        with pytest.raises(WrongFamily, match="IP-Adapter") as refused:
            use(sd, "sd")
    sd.image_encoder, sd.feature_extractor = None, None
    follow(refused, sd)
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)


def test_a_folder_with_only_a_variant(tmp_path):
    folder = tmp_path / "sd"
    tiny.save_sd(folder)
    expected = score_maps(load(folder).to(torch.float16).to(torch.float32), SD_CONFIG)
    for file in folder.glob("*/*.safetensors"):  # as `save_pretrained(variant="fp16")` names them
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    torch.testing.assert_close(score_maps(str(folder), SD_CONFIG, device="cpu"), expected, rtol=0, atol=1e-2)
