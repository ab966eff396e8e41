"""Bria 3.2: Flux's blocks with T5 alone; the text is padded with zeros, which are attended to."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.flux import flux_features, flux_layers
from diffusion_feature.families.joint import PATCH
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import padded_tokens

TEXT = 128  # T5 tokens


def encode_t5(parts: Parts, prompts: list[str]) -> Conditioning:
    """T5's states of each prompt alone, and zeros after them   [B, N, c]"""
    weight, encoder = like(parts["transformer"]), parts["text_encoder"]
    tokens, cut = padded_tokens(parts["tokenizer"], encoder, prompts, TEXT)
    rows = []
    for ids, count in zip(tokens["input_ids"], tokens["attention_mask"].sum(1)):
        states = encoder(ids[None, :count])[0][0]
        rows.append(F.pad(states, (0, 0, 0, TEXT - len(states))))
    places = torch.zeros(TEXT, 3, device=weight.device)
    return Conditioning({"encoder_hidden_states": torch.stack(rows).to(weight), "txt_ids": places}, TEXT, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    return packed_forward(parts, latents, level, conditioning.arguments, unit=1)


BRIA = Backbone(
    name="Bria transformer",
    denoiser="transformer",
    kind="BriaTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEXT),),
    layers=flux_layers,
    features=flux_features,
    encode_text=encode_t5,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=30, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_bria.BriaAttnProcessor",
    patch=PATCH,
    half=torch.bfloat16,
)
