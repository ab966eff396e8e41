"""Tiny random pipelines whose text encoders are T5 and CLIP: Chroma, CogView3-Plus, Bria, SD 3.5 large, AuraFlow."""

from pathlib import Path

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
)
from tiny import clip, flow, save_pipeline, save_t5_tokenizer, save_tokenizer, sd3_transformer, t5, vae, wide_t5
from transformers import CLIPTextModelWithProjection, UMT5Config, UMT5EncoderModel


def save_chroma(folder: Path) -> Path:
    """Two double-stream and two single-stream blocks."""
    torch.manual_seed(0)
    pieces = save_t5_tokenizer(folder / "tokenizer")
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1), "text_encoder": t5(pieces)}
    parts["scheduler"] = flow(use_dynamic_shifting=True)
    return save_pipeline(folder, "ChromaPipeline", {"tokenizer": "T5Tokenizer"}, **parts)


def save_cogview3(folder: Path) -> Path:
    torch.manual_seed(0)
    pieces = save_t5_tokenizer(folder / "tokenizer")
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=8,
    )
    parts = {"transformer": transformer, "vae": vae(), "text_encoder": t5(pieces)}
    parts["scheduler"] = CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return save_pipeline(folder, "CogView3PlusPipeline", {"tokenizer": "T5Tokenizer"}, **parts)


def save_bria(folder: Path) -> Path:
    torch.manual_seed(0)
    pieces = save_t5_tokenizer(folder / "tokenizer")
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=None,
        axes_dims_rope=(2, 2, 4),
    )
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1), "text_encoder": t5(pieces)}
    parts["scheduler"] = flow(use_dynamic_shifting=True)
    return save_pipeline(folder, "BriaPipeline", {"tokenizer": "T5Tokenizer"}, **parts)


def save_sd35_large(folder: Path) -> Path:
    """Joint blocks with norms of queries and keys, and no second attention."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer_2")
    pieces = save_t5_tokenizer(folder / "tokenizer_3")
    transformer = sd3_transformer()
    encoders = [clip(words, CLIPTextModelWithProjection, projection_dim=16) for _ in range(2)]
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1), "scheduler": flow(shift=3.0)}
    parts |= {"text_encoder": encoders[0], "text_encoder_2": encoders[1], "text_encoder_3": wide_t5(pieces)}
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5Tokenizer"}
    return save_pipeline(folder, "StableDiffusion3Pipeline", tokenizers, **parts)


def save_auraflow(folder: Path) -> Path:
    """Two double-stream and two single-stream blocks; eight registers before the text."""
    torch.manual_seed(0)
    pieces = save_t5_tokenizer(folder / "tokenizer")
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    torch.nn.init.normal_(transformer.register_tokens)
    config = UMT5Config(vocab_size=pieces, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    parts = {"transformer": transformer, "vae": vae(), "text_encoder": UMT5EncoderModel(config)}
    parts["scheduler"] = flow(shift=1.73)
    return save_pipeline(folder, "AuraFlowPipeline", {"tokenizer": "T5Tokenizer"}, **parts)
