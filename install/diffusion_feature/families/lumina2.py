"""Lumina-Image 2.0: one stack of blocks over [text, image]; the language model Gemma 2 reads the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.calls import Call, CallNotUnderstood, by_signature
from diffusion_feature.chat import PromptReader, Template, between, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, refuse_odd, stack_features, stack_layers
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

LAYOUT = "text-first"
INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
TEMPLATE = Template(between(INSTRUCTION), length=256, left=False)  # the denoiser leaves padding out
PADDED = replace(TEMPLATE, fixed=True)


def lumina_layers(transformer: Any) -> list[AttentionLayer]:
    return stack_layers(numbered(transformer.layers), LAYOUT)


def lumina_features(transformer: Any) -> dict[str, DenseFeature]:
    return stack_features(numbered(transformer.layers), LAYOUT)


def encode_gemma(parts: Parts, prompts: list[str]) -> Conditioning:
    """Gemma's states before its last layer [B, 256, c] and the mask of tokens that are not padding [B, 256]"""
    reader = PromptReader(parts["tokenizer"], PADDED)
    states, mask, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-2))
    lengths = mask.sum(1)
    same_lengths(lengths)
    weight = like(parts["transformer"])
    arguments = {"encoder_hidden_states": states.to(weight), "encoder_attention_mask": mask.to(weight.device)}
    return Conditioning(arguments, int(lengths[0]), cut)


def same_lengths(lengths: Tensor) -> None:
    if len(found := lengths.unique().tolist()) > 1:
        raise CallNotUnderstood(
            f"the prompts have {' and '.join(map(str, found))} tokens: image tokens come after the text, so prompts "
            "that share a forward need equally many; give them one at a time"
        )


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    refuse_odd(parts, latents)
    transformer = parts["transformer"]
    timestep = torch.full((len(latents),), 1 - level.timestep / 1000, device=latents.device)  # 0 is noise
    known = conditioning.arguments
    return transformer(latents.to(like(transformer)), timestep=timestep, return_dict=False, **known)[0]


def call(given: Mapping[str, Any], patch: int) -> Call:
    same_lengths(given["encoder_attention_mask"].sum(1))
    return by_signature(given, patch)


def accepts(transformer: nn.Module) -> bool:
    config: Any = transformer.config
    return config.patch_size == PATCH


LUMINA2 = Backbone(
    name="Lumina-Image 2.0 transformer",
    denoiser="transformer",
    kind="Lumina2Transformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=lumina_layers,
    features=lumina_features,
    encode_text=encode_gemma,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=30, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_lumina2.Lumina2AttnProcessor2_0",
    accepts=accepts,
    left_alone=("context_refiner.*", "noise_refiner.*"),
    call=call,
    time_is_reversed=True,
    patch=PATCH,
    half=torch.bfloat16,
)
