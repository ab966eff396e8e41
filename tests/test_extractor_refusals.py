"""What the extractor refuses: folders, families, attention backends, and forwards that it does not understand."""

import shutil

import pytest
import torch
from calls import call
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusion_feature import (
    AttentionNotSeen,
    ExtractorError,
    FeatureExtractor,
    LayerNotFound,
    PartMissing,
    PipelineNotFound,
    VersionNotKnown,
    WrongFamily,
)
from tiny import Everything


def test_a_layer_that_is_not_there(tiny_sd):
    with pytest.raises(LayerNotFound, match="Nearest: up-level1-repeat2-vit-block0-cross-map"):
        FeatureExtractor(["up-level1-repeat3-vit-block0-cross-map"], "mini", pipeline=tiny_sd)


def test_a_version_that_is_not_known(tiny_sd):
    with pytest.raises(VersionNotKnown, match="expected one of: 1-4, 1-5, mini"):
        FeatureExtractor((), "9-9", pipeline=tiny_sd)


def test_a_pipeline_folder_that_is_not_one(tmp_path, tiny_sd):
    with pytest.raises(PipelineNotFound, match=r"has no model_index\.json; expected a folder written by"):
        FeatureExtractor((), "mini", pipeline=tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(PipelineNotFound, match="is not JSON"):
        FeatureExtractor((), "mini", pipeline=tmp_path)
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(PartMissing, match="part 'unet' cannot be read as a UNet2DConditionModel"):
        FeatureExtractor((), "mini", pipeline=tmp_path)
    (tmp_path / "model_index.json").write_text('{"unet": ["os", "system"]}')
    with pytest.raises(PartMissing, match="'unet' is of library 'os'"):
        FeatureExtractor((), "mini", pipeline=tmp_path)
    with pytest.raises(ExtractorError, match="no pipeline"):
        FeatureExtractor((), "mini")


def test_a_pipeline_without_a_part(tmp_path, tiny_sd):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_sd, folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(PartMissing, match="the part 'vae' cannot be read"):
        FeatureExtractor((), "mini", pipeline=folder)


def test_weights_that_are_pickled_are_not_read(tmp_path, tiny_sd):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_sd, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(PartMissing, match="'unet'"):
        FeatureExtractor((), "mini", pipeline=folder)


def test_another_family(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None, feature_extractor=None)
    pipe.unet = torch.nn.Linear(2, 2)
    with pytest.raises(WrongFamily, match="unet is a Linear, which is not the Stable Diffusion UNet"):
        FeatureExtractor((), "mini", pipeline=pipe)


@pytest.fixture
def own(tiny_sd):
    """An extractor whose denoiser a test may spoil."""
    return FeatureExtractor((), "mini", img_size=32, pipeline=tiny_sd, device="cpu")


def test_another_attention_backend_is_refused(own):
    own.denoiser.set_attn_processor(AttnProcessor())  # plain matrix products, out of the tap's sight
    with (
        pytest.raises(AttentionNotSeen, match=r"22 of 22 .* processor AttnProcessor.*set_default_attn_processor"),
        own.tap(Everything(), (8, 8)),
    ):
        call(own)


def test_one_layer_on_another_backend_is_refused(own):
    own.layers[3].module.set_processor(AttnProcessor())
    with pytest.raises(AttentionNotSeen, match="1 of 22 attention modules"), own.tap(Everything(), (8, 8)):
        call(own)


def test_two_calls_in_one_tap_are_refused(own):
    with pytest.raises(AttentionNotSeen, match="seen 2 times"), own.tap(Everything(), (8, 8)):
        call(own)
        call(own)


def test_compiled_layers_are_refused(own):
    own.layers[0].module._compiled_call_impl = lambda *args: None
    with pytest.raises(AttentionNotSeen, match="is compiled"), own.tap(Everything(), (8, 8)):
        call(own)


def test_fused_projections_are_refused(own):
    own.denoiser.fuse_qkv_projections()
    with (
        pytest.raises(AttentionNotSeen, match="unfuse_qkv_projections"),
        own.tap(Everything("mid-vit-block0-self-q"), (8, 8)),
    ):
        call(own)


def test_an_output_that_the_probabilities_do_not_explain_is_refused(own):

    class Dropping(torch.nn.Module):
        """A processor that drops out half the attention: the output is not softmax(q k) v."""

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            split = [
                x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
                for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
            ]
            out = torch.nn.functional.scaled_dot_product_attention(*split, dropout_p=0.5)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

    own.layers[1].module.processor = Dropping()
    with pytest.raises(AttentionNotSeen, match="differs from the model's"), own.tap(Everything(), (8, 8)):
        call(own)


def test_an_error_inside_the_forward_leaves_no_trace(own):
    class Stop(Everything):
        def attention(self, attention):
            raise KeyboardInterrupt

    bare = call(own)
    with pytest.raises(KeyboardInterrupt), own.tap(Stop(), (8, 8)):
        call(own)
    assert torch.overrides._get_current_function_mode() is None
    assert torch.equal(bare, call(own))


def test_a_unet_with_unnamed_attention_is_refused(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None, feature_extractor=None)
    pipe.unet = UNet2DConditionModel(
        block_out_channels=(16, 16),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(WrongFamily, match="is an attention module without a layer id in this family"):
        FeatureExtractor((), "mini", pipeline=pipe)
