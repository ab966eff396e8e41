"""CogView4: CogView3-Plus's blocks with rotary places, and the language model GLM's states of the bare prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from diffusion_feature.backbone import Backbone, Conditioning, Parts
from diffusion_feature.chat import PromptReader, Template, bare, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.cogview3 import accepts, cogview_features, cogview_layers, denoise
from diffusion_feature.families.joint import PATCH
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

TEMPLATE = Template(bare, length=1024, multiple=16, left=True)  # padding is attended to, by GLM too


def encode_glm(parts: Parts, prompts: list[str]) -> Conditioning:
    """GLM's states before its last layer   [B, N, c]"""
    reader = PromptReader(parts["tokenizer"], TEMPLATE)
    states, _, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-2, masked=False))
    return Conditioning({"encoder_hidden_states": states.to(like(parts["transformer"]))}, states.shape[1], cut)


def shift(config: Any, latents: tuple[int, int], steps: int) -> float:
    """mu grows with the side of the image: sqrt(tokens / base_image_seq_len) * max_shift + base_shift"""
    tokens = (latents[0] // PATCH) * (latents[1] // PATCH)
    return (tokens / config.base_image_seq_len) ** 0.5 * config.max_shift + config.base_shift


COGVIEW4 = Backbone(
    name="CogView4 transformer",
    denoiser="transformer",
    kind="CogView4Transformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=cogview_layers,
    features=cogview_features,
    encode_text=encode_glm,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50, spaced=True, shift_of=shift),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_cogview4.CogView4AttnProcessor",
    accepts=accepts,
    patch=PATCH,
    half=torch.bfloat16,
)
