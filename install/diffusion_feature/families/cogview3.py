"""CogView3-Plus: one stack of blocks, one attention over [text, image] in each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, refuse_odd, stack_features, stack_layers
from diffusion_feature.latents import size_in_pixels, vae_latents
from diffusion_feature.noise import variance_preserving
from diffusion_feature.text import encoder_states

LAYOUT = "text-first"
TEXT = 224  # T5 tokens


def cogview_layers(transformer: Any) -> list[AttentionLayer]:
    return stack_layers(numbered(transformer.transformer_blocks), LAYOUT, "attn1")


def cogview_features(transformer: Any) -> dict[str, DenseFeature]:
    return stack_features(numbered(transformer.transformer_blocks), LAYOUT, "attn1", parted=True)


def encode_t5(parts: Parts, prompts: list[str]) -> Conditioning:
    """T5's states; padding is attended to like words   [B, N, c]"""
    states, _, cut = encoder_states(parts["tokenizer"], parts["text_encoder"], prompts, TEXT, masked=False)
    return Conditioning({"encoder_hidden_states": states.to(like(parts["transformer"]))}, TEXT, cut)


def sizes(parts: Parts, latents: Tensor) -> dict[str, Tensor]:
    """The image's size as a condition: no crop   [B, 2] each"""
    size = torch.tensor([size_in_pixels(parts, latents)] * len(latents)).to(like(parts["transformer"]))
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    refuse_odd(parts, latents)
    transformer = parts["transformer"]
    return transformer(
        latents.to(like(transformer)),
        timestep=torch.full((len(latents),), level.timestep, device=latents.device),
        **sizes(parts, latents),
        **conditioning.arguments,
        return_dict=False,
    )[0]


def accepts(transformer: nn.Module) -> bool:
    config: Any = transformer.config
    return config.patch_size == PATCH


COGVIEW3 = Backbone(
    name="CogView3-Plus transformer",
    denoiser="transformer",
    kind="CogView3PlusTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEXT),),
    layers=cogview_layers,
    features=cogview_features,
    encode_text=encode_t5,
    encode_image=vae_latents,
    noise_level=variance_preserving,
    denoise=denoise,
    processor="diffusers.models.attention_processor.CogVideoXAttnProcessor2_0",
    accepts=accepts,
    patch=PATCH,
    half=torch.bfloat16,
)
