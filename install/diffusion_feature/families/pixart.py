"""PixArt-alpha and PixArt-Sigma: a transformer with self- and cross-attention to T5's text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import block_features, block_layers, numbered
from diffusion_feature.latents import size_in_pixels, vae_latents
from diffusion_feature.noise import variance_preserving
from diffusion_feature.text import encoder_states


def pixart_layers(transformer: Any) -> list[AttentionLayer]:
    return block_layers(numbered(transformer.transformer_blocks))


def pixart_features(transformer: Any) -> dict[str, DenseFeature]:
    return block_features(numbered(transformer.transformer_blocks))


def encode_t5(parts: Parts, prompts: list[str], length: int) -> Conditioning:
    """T5's states, in lower case; padding is masked   [B, N, c]"""
    prompts = [prompt.lower().strip() for prompt in prompts]
    states, mask, cut = encoder_states(parts["tokenizer"], parts["text_encoder"], prompts, length, masked=True)
    weight = like(parts["transformer"])
    arguments = {"encoder_hidden_states": states.to(weight), "encoder_attention_mask": mask.to(weight.device)}
    return Conditioning(arguments, length, cut)


def projected(parts: Parts, arguments: Mapping[str, Any]) -> Tensor:
    return parts["transformer"].caption_projection(arguments["encoder_hidden_states"])


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    transformer = parts["transformer"]
    weight = like(transformer)
    size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:  # PixArt-alpha at 1024
        h, w = size_in_pixels(parts, latents)
        size["resolution"] = torch.tensor([[h, w]] * len(latents)).to(weight)
        size["aspect_ratio"] = torch.tensor([[h / w]] * len(latents)).to(weight)
    timestep = torch.full((len(latents),), int(level.timestep), device=latents.device)
    known = conditioning.arguments
    return transformer(latents.to(weight), timestep=timestep, added_cond_kwargs=size, return_dict=False, **known)[0]


def pixart(name: str, length: int) -> Backbone:
    """One of the family, by the number of text tokens."""
    return Backbone(
        name=name,
        denoiser="transformer",
        kind="PixArtTransformer2DModel",
        old_kinds=("Transformer2DModel",),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        prompt=(("tokenizer", length),),
        layers=pixart_layers,
        features=pixart_features,
        encode_text=partial(encode_t5, length=length),
        encode_image=vae_latents,
        noise_level=variance_preserving,
        denoise=denoise,
        attended=projected,
    )


PIXART_ALPHA = pixart("PixArt-alpha transformer", 120)
PIXART_SIGMA = pixart("PixArt-Sigma transformer", 300)
