"""Flux: double-stream blocks, then single-stream blocks; one attention over [text, image] in all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, joint_features, stack_layers
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import clip_tokens, encoder_states, written_out
from diffusion_feature.weights import weight_of

LAYOUT = "text-first"
GUIDANCE = 1.0


def flux_layers(transformer: Any) -> list[AttentionLayer]:
    return stream_layers(transformer, LAYOUT, first_columns)


def stream_layers(transformer: Any, layout: str, columns: Callable[[Any], Tensor]) -> list[AttentionLayer]:
    """Double-stream blocks, then single-stream blocks, numbered on; the heads of the latter are always averaged.

    columns  single-stream block -> the attention's part of its output projection   [D, H*d]
    """
    single = [
        AttentionLayer(name, layout, block.attn, partial(columns, block), weighed=False)
        for name, block in single_blocks(transformer)
    ]
    return stack_layers(numbered(transformer.transformer_blocks), layout) + single


def flux_features(transformer: Any) -> dict[str, DenseFeature]:
    features = joint_features(transformer.transformer_blocks)
    for name, block in single_blocks(transformer):
        for letter in "qkv":
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.attn, f"to_{letter}"), LAYOUT)
        features[f"{name}-attn-out"] = DenseFeature(block.attn, LAYOUT)  # before the output projection
        features[f"{name}-out"] = DenseFeature(block, part=1)  # text comes first
    return features


def single_blocks(transformer: Any) -> list[tuple[str, Any]]:
    first = len(transformer.transformer_blocks)
    return [(f"vit-block{n}", block) for n, block in enumerate(transformer.single_transformer_blocks, first)]


def first_columns(block: Any) -> Tensor:
    """A single-stream block projects [attention, MLP] at once: the attention's part   [D, H*d]"""
    return weight_of(block.proj_out)[:, : block.attn.inner_dim]


def encode_flux(parts: Parts, prompts: list[str], length: int) -> Conditioning:
    """T5's states [B, N, c], CLIP's pooled state [B, p]; places [N, 3] of text tokens are all zero."""
    weight = like(parts["transformer"])
    read = written_out(parts["tokenizer_2"], prompts)
    states, _, cut = encoder_states(parts["tokenizer_2"], parts["text_encoder_2"], read, length, masked=False)
    tokens, _ = clip_tokens(parts["tokenizer"], parts["text_encoder"], prompts)  # it tells the subject only
    arguments = {
        "encoder_hidden_states": states.to(weight),
        "pooled_projections": parts["text_encoder"](tokens["input_ids"]).pooler_output.to(weight),
        "txt_ids": torch.zeros(length, 3, device=weight.device),
    }
    return Conditioning(arguments, length, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    guided = parts["transformer"].config.guidance_embeds
    guidance = torch.full((len(latents),), GUIDANCE, device=latents.device) if guided else None
    return packed_forward(parts, latents, level, conditioning.arguments | {"guidance": guidance})


def accepts(transformer: Any) -> bool:
    """Not the variants with a mask, a depth map or another image beside the latents."""
    return transformer.config.out_channels in (None, transformer.config.in_channels)


def flux(name: str, length: int) -> Backbone:
    """One of the family, by the number of T5 tokens: padding is attended to, so that a model knows one length."""
    return Backbone(
        name=name,
        denoiser="transformer",
        kind="FluxTransformer2DModel",
        parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        prompt=(("tokenizer_2", length),),
        layers=flux_layers,
        features=flux_features,
        encode_text=partial(encode_flux, length=length),
        encode_image=vae_latents,
        noise_level=partial(rectified_flow, spaced=True),
        denoise=denoise,
        processor="diffusers.models.transformers.transformer_flux.FluxAttnProcessor",
        accepts=accepts,
        patch=PATCH,
        half=torch.bfloat16,
    )


FLUX = flux("Flux transformer", 512)
MINI_FLUX = flux("small Flux transformer", 32)
