"""AuraFlow: double-stream blocks, then single-stream blocks, over [registers, text, image]."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, joint_features, refuse_odd, stack_features, stack_layers
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import encoder_states

LAYOUT = "text-first"
TEXT = 256  # tokens


def single_blocks(transformer: Any) -> list[tuple[str, Any]]:
    first = len(transformer.joint_transformer_blocks)
    return [(f"vit-block{n}", block) for n, block in enumerate(transformer.single_transformer_blocks, first)]


def auraflow_layers(transformer: Any) -> list[AttentionLayer]:
    registers = transformer.register_tokens.shape[1]
    blocks = [*numbered(transformer.joint_transformer_blocks), *single_blocks(transformer)]
    return stack_layers(blocks, LAYOUT, own=lambda image: registers)


def auraflow_features(transformer: Any) -> dict[str, DenseFeature]:
    single = stack_features(single_blocks(transformer), LAYOUT)
    return joint_features(transformer.joint_transformer_blocks) | single


def encode_t5(parts: Parts, prompts: list[str]) -> Conditioning:
    """The text encoder's states, zero where there is padding   [B, N, c]"""
    states, mask, cut = encoder_states(parts["tokenizer"], parts["text_encoder"], prompts, TEXT, masked=True)
    return Conditioning({"encoder_hidden_states": (states * mask[..., None]).to(like(parts["transformer"]))}, TEXT, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    refuse_odd(parts, latents)
    transformer = parts["transformer"]
    weight = like(transformer)
    timestep = torch.full((len(latents),), level.timestep / 1000).to(weight)
    return transformer(latents.to(weight), timestep=timestep, return_dict=False, **conditioning.arguments)[0]


def accepts(transformer: nn.Module) -> bool:
    config: Any = transformer.config
    return config.patch_size == PATCH


AURAFLOW = Backbone(
    name="AuraFlow transformer",
    denoiser="transformer",
    kind="AuraFlowTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEXT),),
    layers=auraflow_layers,
    features=auraflow_features,
    encode_text=encode_t5,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50),
    denoise=denoise,
    processor="diffusers.models.attention_processor.AuraFlowAttnProcessor2_0",
    accepts=accepts,
    patch=PATCH,
    half=torch.float16,
)
