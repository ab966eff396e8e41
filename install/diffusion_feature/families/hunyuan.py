"""HunyuanDiT: a transformer with cross-attention to BERT's tokens followed by T5's, and rotary places."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import block_features, block_layers, numbered
from diffusion_feature.latents import size_in_pixels, vae_latents
from diffusion_feature.noise import variance_preserving
from diffusion_feature.text import encoder_states, longest

BERT, T5 = 77, 256  # text tokens
ORIGINAL_SIZE = (1024, 1024)  # of the image, as the pipeline always says
CORNER = (0, 0)  # of the crop, upper left
BASE = 64  # side of the latents on whose grid rotary places are counted
STEPS = 50  # the pipeline's own


def hunyuan_layers(transformer: Any) -> list[AttentionLayer]:
    return block_layers(numbered(transformer.blocks))


def hunyuan_features(transformer: Any) -> dict[str, DenseFeature]:
    return block_features(numbered(transformer.blocks))


def encode_bert_t5(parts: Parts, prompts: list[str]) -> Conditioning:
    """BERT's states [B, 77, c] and T5's [B, 256, c'] with their masks; the denoiser puts its own padding in."""
    weight = like(parts["transformer"])
    bert, mask, cut = encoder_states(parts["tokenizer"], parts["text_encoder"], prompts, BERT, masked=True)
    t5, mask_t5, cut_t5 = encoder_states(parts["tokenizer_2"], parts["text_encoder_2"], prompts, T5, masked=True)
    arguments = {
        "encoder_hidden_states": bert.to(weight),
        "text_embedding_mask": mask.to(weight.device),
        "encoder_hidden_states_t5": t5.to(weight),
        "text_embedding_mask_t5": mask_t5.to(weight.device),
    }
    return Conditioning(arguments, BERT + T5, longest(cut, cut_t5))


def centred(grid: tuple[int, int], base: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """A grid's corners when its longer side is fitted to a square of side `base`, in the middle."""
    h, w = (round(base * side / max(grid)) for side in grid)
    top, left = round((base - h) / 2), round((base - w) / 2)
    return (top, left), (top + h, left + w)


def rotary(transformer: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every image token's place   [S, d] each"""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed  # seconds to import

    patch = transformer.config.patch_size
    grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
    width = transformer.inner_dim // transformer.num_heads
    corners = centred(grid, BASE // patch)
    return get_2d_rotary_pos_embed(width, corners, grid, device=latents.device, output_type="pt")


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    transformer = parts["transformer"]
    weight = like(transformer)
    condition: dict[str, Tensor] = {}
    if transformer.config.use_style_cond_and_image_meta_size:
        sizes = [*ORIGINAL_SIZE, *size_in_pixels(parts, latents), *CORNER]
        condition["image_meta_size"] = torch.tensor([sizes] * len(latents)).to(weight)
        condition["style"] = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    return transformer(
        latents.to(weight),
        torch.full((len(latents),), float(level.timestep)).to(weight),
        **conditioning.arguments,
        **condition,
        image_rotary_emb=rotary(transformer, latents),
        return_dict=False,
    )[0]


HUNYUAN = Backbone(
    name="HunyuanDiT transformer",
    denoiser="transformer",
    kind="HunyuanDiT2DModel",
    parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    prompt=(("tokenizer", BERT), ("tokenizer_2", T5)),
    layers=hunyuan_layers,
    features=hunyuan_features,
    encode_text=encode_bert_t5,
    encode_image=vae_latents,
    noise_level=partial(variance_preserving, steps=STEPS),
    denoise=denoise,
    processor="diffusers.models.attention_processor.HunyuanAttnProcessor2_0",
)
