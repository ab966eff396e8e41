"""Stable Diffusion 3 and 3.5: one attention over [image, text]; some blocks of 3.5 add one over the image alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered, out_projection
from diffusion_feature.families.joint import PATCH, joint_features, refuse_odd
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import clip_penultimate, encoder_states, longest

T5 = 256  # tokens, after CLIP's
STEPS = 28


def sd3_layers(transformer: Any) -> list[AttentionLayer]:
    """The attention over the image alone is "vit-block0-dual"."""
    layers = []
    for name, block in numbered(transformer.transformer_blocks):
        layers.append(AttentionLayer(name, "image-first", block.attn, partial(out_projection, block.attn)))
        if block.attn2 is not None:
            layers.append(AttentionLayer(f"{name}-dual", "self", block.attn2, partial(out_projection, block.attn2)))
    return layers


def sd3_features(transformer: Any) -> dict[str, DenseFeature]:
    return joint_features(transformer.transformer_blocks)


def encode_three(parts: Parts, prompts: list[str]) -> Conditioning:
    """Both CLIPs side by side, widened with zeros, then T5's tokens (zeros without a T5)   [B, 77 + 256, c]"""
    transformer = parts["transformer"]
    weight, width = like(transformer), transformer.config.joint_attention_dim
    first, pooled, cut = clip_penultimate(parts["tokenizer"], parts["text_encoder"], prompts)
    second, pooled_2, cut_2 = clip_penultimate(parts["tokenizer_2"], parts["text_encoder_2"], prompts)
    clip = torch.cat([first, second.to(first)], dim=-1).to(weight)
    t5 = torch.zeros(len(prompts), T5, width)
    if "text_encoder_3" in parts:
        t5 = encoder_states(parts["tokenizer_3"], parts["text_encoder_3"], prompts, T5, masked=False)[0]
    states = torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5.to(weight)], dim=1)
    arguments = {
        "encoder_hidden_states": states,
        "pooled_projections": torch.cat([pooled, pooled_2.to(pooled)], dim=-1).to(weight),
    }
    return Conditioning(arguments, states.shape[1], longest(cut, cut_2))


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    refuse_odd(parts, latents)
    transformer = parts["transformer"]
    timestep = torch.full((len(latents),), float(level.timestep), device=latents.device)
    known = conditioning.arguments
    return transformer(latents.to(like(transformer)), timestep=timestep, return_dict=False, **known)[0]


def accepts(transformer: Any) -> bool:
    return transformer.config.patch_size == PATCH


SD3 = Backbone(
    name="Stable Diffusion 3 transformer",
    denoiser="transformer",
    kind="SD3Transformer2DModel",
    parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    optional=("text_encoder_3", "tokenizer_3"),
    prompt=(("tokenizer", None),),  # entities are looked for among CLIP's tokens, which come first
    layers=sd3_layers,
    features=sd3_features,
    encode_text=encode_three,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=STEPS),
    denoise=denoise,
    processor="diffusers.models.attention_processor.JointAttnProcessor2_0",
    accepts=accepts,
    patch=PATCH,
    half=torch.bfloat16,
)
