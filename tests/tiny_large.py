"""Tiny random pipelines with VAEs of their own: Qwen-Image, FLUX.2, Z-Image, HunyuanImage 2.1, SANA."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    Flux2Transformer2DModel,
    HunyuanImageTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    ZImageTransformer2DModel,
)
from tiny import flow, save_pipeline, t5, vae
from tiny_chat import FAST, language_model, qwen_vl, save_language_tokenizer
from transformers import ByT5Tokenizer


def save_qwen_image(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    video = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    )
    parts = {"transformer": transformer, "vae": video, "text_encoder": qwen_vl(words)}
    parts["scheduler"] = flow(use_dynamic_shifting=True)
    return save_pipeline(folder, "QwenImagePipeline", {"tokenizer": FAST}, **parts)


def flux2_vae() -> AutoencoderKLFlux2:
    """Latents of an eighth, which the pipeline makes patches of."""
    made = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    torch.nn.init.normal_(made.bn.running_mean, std=0.3)
    torch.nn.init.uniform_(made.bn.running_var, 0.5, 2.0)
    return made


def flux2_transformer(width: int, guided: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * width,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guided,
    )


def save_flux2_dev(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer", left=True)
    encoder = language_model("MistralModel", words, num_hidden_layers=30)
    parts = {"transformer": flux2_transformer(16, True), "vae": flux2_vae(), "text_encoder": encoder}
    parts["scheduler"] = flow(use_dynamic_shifting=True)
    return save_pipeline(folder, "Flux2Pipeline", {"tokenizer": FAST}, **parts)


def save_flux2_klein(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    encoder = language_model("Qwen3ForCausalLM", words, num_hidden_layers=27)
    parts = {"transformer": flux2_transformer(16, False), "vae": flux2_vae(), "text_encoder": encoder}
    parts["scheduler"] = flow(use_dynamic_shifting=True)
    return save_pipeline(folder, "Flux2KleinPipeline", {"tokenizer": FAST}, **parts)


def save_zimage(folder: Path) -> Path:
    """Sixteen image tokens, so that as many of padding follow before the text."""
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[2, 2, 4],
        axes_lens=[256, 64, 64],
    )
    torch.nn.init.normal_(transformer.x_pad_token)
    torch.nn.init.normal_(transformer.cap_pad_token)
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1)}
    parts |= {"text_encoder": language_model("Qwen3Model", words), "scheduler": flow(shift=3.0)}
    return save_pipeline(folder, "ZImagePipeline", {"tokenizer": FAST}, **parts)


def save_hunyuan_image(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer_2")
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    made = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=32,
        scaling_factor=0.75,
    )
    parts = {"transformer": transformer, "vae": made, "text_encoder": qwen_vl(words), "text_encoder_2": t5(400)}
    tokenizers = {"tokenizer": FAST, "tokenizer_2": "ByT5Tokenizer"}
    return save_pipeline(folder, "HunyuanImagePipeline", tokenizers, **parts, scheduler=flow(shift=5.0))


def save_sana(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer", start="<|im_start|>")
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    for block in transformer.transformer_blocks:  # so that the reference feature differs from place to place
        torch.nn.init.normal_(block.attn1.to_v.weight)
        torch.nn.init.normal_(block.attn1.to_out[0].weight)
    made = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 4,
        decoder_block_types=("ResBlock",) * 4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    parts = {"transformer": transformer, "vae": made, "text_encoder": language_model("Gemma2Model", words)}
    parts["scheduler"] = flow(shift=3.0)
    return save_pipeline(folder, "SanaPipeline", {"tokenizer": FAST}, **parts)
