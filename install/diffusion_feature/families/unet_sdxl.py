"""SDXL's UNet, also Playground v2's: two CLIP encoders side by side, conditioned on the image's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.unet_sd import given_states, unet_features, unet_layers
from diffusion_feature.latents import size_in_pixels, vae_latents
from diffusion_feature.noise import variance_preserving
from diffusion_feature.text import clip_penultimate, longest

AESTHETIC_SCORE = 6.0  # given to UNets that are conditioned on one


def encode_two_clips(parts: Parts, prompts: list[str]) -> Conditioning:
    """The states of both encoders before their last layer [B, N, c1 + c2]; the second one's projected text [B, p]."""
    weight = like(parts["unet"])
    first, _, cut = clip_penultimate(parts["tokenizer"], parts["text_encoder"], prompts)
    second, pooled, cut_2 = clip_penultimate(parts["tokenizer_2"], parts["text_encoder_2"], prompts)
    states = torch.cat([first, second.to(first)], dim=-1).to(weight)
    arguments = {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled.to(weight)}}
    return Conditioning(arguments, states.shape[1], longest(cut, cut_2))


def size_numbers(parts: Parts, latents: Tensor, text_embeds: Tensor) -> Tensor:
    """Original size, upper left corner of the crop, target size; or an aesthetic score for the last   [B, 6 or 5]"""
    unet, (h, w) = parts["unet"], size_in_pixels(parts, latents)
    asked = (unet.add_embedding.linear_1.in_features - text_embeds.shape[1]) // unet.config.addition_time_embed_dim
    numbers = (h, w, 0, 0, h, w) if asked == 6 else (h, w, 0, 0, AESTHETIC_SCORE)
    return torch.tensor([numbers] * len(latents)).to(text_embeds)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    unet, known = parts["unet"], conditioning.arguments
    texts = known["added_cond_kwargs"]["text_embeds"]
    added = {"text_embeds": texts, "time_ids": size_numbers(parts, latents, texts)}
    timestep = torch.full((len(latents),), level.timestep, device=latents.device)
    return unet(latents.to(texts), timestep, **known | {"added_cond_kwargs": added}, return_dict=False)[0]


def accepts(unet: Any) -> bool:
    return unet.config.addition_embed_type == "text_time" and unet.config.encoder_hid_dim_type is None


UNET_SDXL = Backbone(
    name="SDXL UNet",
    denoiser="unet",
    kind="UNet2DConditionModel",
    parts=("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    prompt=(("tokenizer", None),),  # both encoders share their token positions
    layers=unet_layers,
    features=unet_features,
    encode_text=encode_two_clips,
    encode_image=vae_latents,
    noise_level=variance_preserving,
    denoise=denoise,
    accepts=accepts,
    attended=given_states,
)
