"""Kolors: SDXL's UNet with the language model ChatGLM3's states, which a linear layer of the UNet narrows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, Parts
from diffusion_feature.chat import PromptReader, Template, bare, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.unet_sd import unet_features, unet_layers
from diffusion_feature.families.unet_sdxl import denoise
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import variance_preserving

TEMPLATE = Template(bare, length=256, fixed=True, left=True)


def encode_chatglm(parts: Parts, prompts: list[str]) -> Conditioning:
    """ChatGLM3's states before its last layer [B, N, c]; the last token's last state [B, c]"""
    weight, pooled = like(parts["unet"]), dict[int, Tensor]()

    def states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        places = (mask.cumsum(1) - 1).clamp(min=0)  # padding is not counted
        found = encoder(
            input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True
        ).hidden_states
        pooled[len(pooled)] = found[-1][-1]  # [L, 1, c]: ChatGLM's batch is the second axis
        return found[-2].transpose(0, 1)

    reader = PromptReader(parts["tokenizer"], TEMPLATE)
    found, _, cut = language_states(reader, parts["text_encoder"], prompts, states)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    texts = torch.cat([pooled[numbers[prompt]] for prompt in prompts])
    arguments = {"encoder_hidden_states": found.to(weight), "added_cond_kwargs": {"text_embeds": texts.to(weight)}}
    return Conditioning(arguments, TEMPLATE.length, cut)


def accepts(unet: Any) -> bool:
    return unet.config.addition_embed_type == "text_time" and unet.config.encoder_hid_dim_type == "text_proj"


KOLORS = Backbone(
    name="Kolors UNet",
    denoiser="unet",
    kind="UNet2DConditionModel",
    parts=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=unet_layers,
    features=unet_features,
    encode_text=encode_chatglm,
    encode_image=vae_latents,
    noise_level=variance_preserving,
    denoise=denoise,
    accepts=accepts,
)
