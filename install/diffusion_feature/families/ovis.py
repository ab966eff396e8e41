"""Ovis-Image: Flux's blocks; the prompt is read by the language model Qwen3, in its chat template."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, NoiseLevel, Parts
from diffusion_feature.chat import PromptReader, Template, chat, language_states, last_states
from diffusion_feature.devices import like
from diffusion_feature.families.flux import flux_features, flux_layers
from diffusion_feature.families.joint import PATCH
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

INSTRUCTION = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
    "objects and background: "
)
TEMPLATE = Template(chat(before=INSTRUCTION, enable_thinking=False), length=256, drop=28, fixed=True, special=False)


def encode_ovis(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen3's last states, zero where there is padding [B, N, c]; places (0, n, n) of text tokens [N, 3]"""
    weight = like(parts["transformer"])
    reader = PromptReader(parts["tokenizer"], TEMPLATE)
    states, mask, cut = language_states(reader, parts["text_encoder"], prompts, last_states)
    number = torch.arange(TEMPLATE.length).float()
    places = torch.stack([torch.zeros_like(number), number, number], dim=1)
    arguments = {"encoder_hidden_states": (states * mask[..., None]).to(weight), "txt_ids": places.to(weight)}
    return Conditioning(arguments, TEMPLATE.length, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    return packed_forward(parts, latents, level, conditioning.arguments)


OVIS = Backbone(
    name="Ovis-Image transformer",
    denoiser="transformer",
    kind="OvisImageTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=flux_layers,
    features=flux_features,
    encode_text=encode_ovis,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_ovis_image.OvisImageAttnProcessor",
    patch=PATCH,
    half=torch.bfloat16,
)
