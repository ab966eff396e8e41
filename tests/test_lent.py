"""A pipeline that is lent is as it was after every use; what it comes with works, or is refused with what helps."""

import copy
import re

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from diffusion_feature import AttentionNotSeen, ExtractorError, FeatureExtractor, WrongFamily
from diffusion_feature.devices import dtype_of
from families import FAMILIES
from goca.generation.trace import trace
from goca.guidance import SemanticGuidance
from goca.segmenter import Segmenter
from PIL import Image
from tiny import SD_CONFIG
from torch import nn

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8))
UNBINNED = {"use_resolution_binning": False}
CALLS = {"pixart": UNBINNED, "hunyuan": UNBINNED, "flux": {"max_sequence_length": 64}}
GUIDED = ("sd", "sd21", "sdxl", "pixart")  # families that semantic-aware guidance is for


def load(folder, **more):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return FAMILIES[name].save(tmp_path_factory.mktemp("pipelines") / name)


@pytest.fixture(scope="module")
def pipe(name, folder):
    """Half the parts in bfloat16, one in training mode, as a user may have left them."""
    pipe = load(folder, dtype=torch.bfloat16)
    pipe.vae.train()
    return pipe


@pytest.fixture
def sd(tiny_sd):
    return load(tiny_sd)


def state(pipe):
    """Whatever a use might change: identities, types, devices, values, modes, hooks, processors, methods, settings."""
    found = {"class": type(pipe), "vars": {key: id(value) for key, value in vars(pipe).items() if key[0] != "_"}}
    for part, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            found[part] = (id(module), str(getattr(module, "config", None)))
            continue
        for path, each in module.named_modules():
            own = {key for key in vars(each) if callable(vars(each)[key])}
            hooks = (len(each._forward_hooks), len(each._forward_pre_hooks), hasattr(each, "_hf_hook"))
            hooks = hooks if "text" not in part else ()  # transformers leaves its own where hidden states are asked for
            found[part, path] = each.training, hooks, own, type(getattr(each, "processor", None))
        for path, weight in [*module.named_parameters(), *module.named_buffers()]:
            found[part, "weight", path] = weight.dtype, weight.device, weight.data_ptr(), float(weight.double().sum())
    return found


def score_maps(pipe, config, **more):
    segmenter = Segmenter.from_pretrained(pipe, config, **more)
    return segmenter.score_maps(PICTURE, segmenter.read_prompt("cat, grass, sky")[0])


def use_segmenter(pipe, name, **more):
    Segmenter.from_pretrained(pipe, FAMILIES[name].config, **more)(PICTURE, "cat, grass")


def use_trace(pipe, name):
    side = FAMILIES[name].picture
    with trace(pipe, FAMILIES[name].config) as t:
        pipe("cat, grass", height=side, width=side, num_inference_steps=2, output_type="np", **CALLS.get(name, {}))
    t.segment()


def use_guidance(pipe, name):
    if name in GUIDED:
        side = FAMILIES[name].picture
        with SemanticGuidance(pipe, FAMILIES[name].config, "cat, grass"):
            pipe("cat, grass", height=side, width=side, num_inference_steps=2, **CALLS.get(name, {}))


USES = {
    "segmenting": use_segmenter,
    "segmenting in float32": lambda pipe, name: use_segmenter(pipe, name, dtype="float32"),
    "segmenting on a device": lambda pipe, name: use_segmenter(pipe, name, device="cpu"),
    "segmenting, offloaded": lambda pipe, name: use_segmenter(pipe, name, device="cpu", offload="sequential"),
    "tracing": use_trace,
    "guiding": use_guidance,
}


@pytest.mark.parametrize("use", USES)
def test_a_pipeline_is_as_it_was(use, name, pipe):
    before = state(pipe)
    USES[use](pipe, name)
    after = state(pipe)
    assert {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)} == {}


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


def follow(refused, pipe):
    """Run what a message says in backquotes."""
    names = {"pipe": pipe, "torch": torch, "denoiser": pipe.components.get("unet", pipe.components.get("transformer"))}
    lines = re.findall(r"`([^`]*)`", str(refused.value))
    assert lines, str(refused.value)
    for line in lines:
        exec(line, names)


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


# ---- what is refused, and what helps


class Hidden:
    """Another way of computing attention, where nobody sees it."""

    def __init__(self, own):
        self.own = own

    def __call__(self, attn, hidden_states, *args, **kwargs):
        with torch._C.DisableTorchFunction():
            return self.own(attn, hidden_states, *args, **kwargs)


class XFormersAttnProcessor(Hidden):
    """As xformers' is called."""


def spoil(pipe, kind=Hidden):
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    denoiser.set_attn_processor({key: kind(own) for key, own in denoiser.attn_processors.items()})


def test_every_family_s_remedy_works(name, folder):
    pipe, config = load(folder), FAMILIES[name].config
    expected = score_maps(pipe, config)
    spoil(pipe)
    with pytest.raises(AttentionNotSeen) as refused:
        score_maps(pipe, config)
    follow(refused, pipe)
    torch.testing.assert_close(score_maps(pipe, config), expected)


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"], scope="module")
def test_what_stood_in_the_message_before_does_not_help(name, folder):
    pipe = load(folder)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    denoiser.set_default_attn_processor()
    assert {type(each) for each in denoiser.attn_processors.values()} == {AttnProcessor}
    with pytest.raises(AttentionNotSeen) as refused:
        score_maps(pipe, FAMILIES[name].config)
    follow(refused, pipe)
    score_maps(pipe, FAMILIES[name].config)


def test_attention_slicing(sd):
    expected = score_maps(sd, SD_CONFIG)
    sd.enable_attention_slicing("max")
    with pytest.raises(AttentionNotSeen, match="processor SlicedAttnProcessor") as refused:
        score_maps(sd, SD_CONFIG)
    follow(refused, sd)
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)


def test_xformers(sd):
    expected = score_maps(sd, SD_CONFIG)
    spoil(sd, XFormersAttnProcessor)
    with pytest.raises(AttentionNotSeen, match="processor XFormersAttnProcessor") as refused:
        score_maps(sd, SD_CONFIG)
    follow(refused, sd)
    torch.testing.assert_close(score_maps(sd, SD_CONFIG), expected)


def test_fused_projections_as_a_reference(sd):
    config = SD_CONFIG | {"ref_layer": "up-level1-repeat1-vit-block0-self-q"}
    expected = score_maps(sd, config)
    sd.unet.fuse_qkv_projections()
    with pytest.raises(AttentionNotSeen, match="fused projections") as refused:
        score_maps(sd, config)
    follow(refused, sd)
    torch.testing.assert_close(score_maps(sd, config), expected, rtol=0, atol=1e-5)


def test_a_denoiser_that_overflows(sd):
    sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight.data.fill_(float("inf"))
    sd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight.data.fill_(float("inf"))
    with pytest.raises(AttentionNotSeen, match="holds nan or inf: it overflows in float32, or its weights are damaged"):
        score_maps(sd, SD_CONFIG)


def test_what_a_lent_pipeline_cannot_be_asked(sd):
    sd.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    for wish in ({"dtype": "float32"}, {"offload": "sequential", "device": "cpu"}):
        with pytest.raises(ExtractorError, match="hooks move or cast the weights of its 'unet' already"):
            score_maps(sd, SD_CONFIG, **wish)


def test_another_type_is_had_of_copies(sd):
    segmenter = Segmenter.from_pretrained(sd, SD_CONFIG, dtype="bfloat16")
    assert dtype_of(segmenter.extractor.denoiser) == torch.bfloat16 and sd.unet.dtype == torch.float32
    assert isinstance(segmenter.extractor.parts["vae"], AutoencoderKL)
    half = copy.deepcopy(sd).to(torch.bfloat16)
    torch.testing.assert_close(score_maps(half, SD_CONFIG), score_maps(sd, SD_CONFIG, dtype="bfloat16"))
