"""A pipeline that is lent is as it was after every use; what it comes with works, or is refused with what helps."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from diffusion_feature import AttentionNotSeen, ExtractorError
from diffusion_feature.devices import dtype_of
from families import FAMILIES
from goca.segmenter import Segmenter
from lent import USES, follow, load, score_maps, state
from tiny import SD_CONFIG


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


@pytest.mark.parametrize("use", USES)
def test_a_pipeline_is_as_it_was(use, name, pipe):
    before = state(pipe)
    USES[use](pipe, name)
    after = state(pipe)
    assert {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)} == {}


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
