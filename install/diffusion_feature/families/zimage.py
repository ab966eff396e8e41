"""Z-Image: one stack of blocks over [image, padding, text]; Qwen3 reads the prompt in its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.calls import Call, CallNotUnderstood, first_number
from diffusion_feature.chat import PromptReader, Template, chat, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, refuse_odd, stack_features, stack_layers
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

LAYOUT = "image-first"
MULTIPLE = 32  # image and text are padded to multiples of so many tokens, each with a token that was learnt for it
TEMPLATE = Template(chat(enable_thinking=True), length=512, multiple=MULTIPLE, left=False)


def zimage_layers(transformer: Any) -> list[AttentionLayer]:
    return stack_layers(numbered(transformer.layers), LAYOUT, "attention", own=lambda image: -image % MULTIPLE)


def zimage_features(transformer: Any) -> dict[str, DenseFeature]:
    return stack_features(numbered(transformer.layers), LAYOUT, "attention")


def encode_qwen3(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen3's states before its last layer, without padding   [n, c] each"""
    reader, weight = PromptReader(parts["tokenizer"], TEMPLATE), like(parts["transformer"])
    states, masks, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-2))
    texts = [each[mask.bool()].to(weight) for each, mask in zip(states, masks)]
    return Conditioning({"cap_feats": texts}, states.shape[1], cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    """Videos of one frame, in a list   [c, 1, h, w] each"""
    refuse_odd(parts, latents)
    transformer = parts["transformer"]
    timestep = (1000 - torch.full((len(latents),), float(level.timestep), device=latents.device)) / 1000  # 0 is noise
    videos = list(latents.to(like(transformer))[:, :, None])
    return torch.stack(transformer(videos, timestep, **conditioning.arguments, return_dict=False)[0])[:, :, 0]


def call(given: Mapping[str, Any], patch: int) -> Call:
    if isinstance(given["x"][0], list):
        raise CallNotUnderstood("the denoiser was given several images each; understood is one")
    latents, texts = torch.stack(list(given["x"])), pad_sequence(list(given["cap_feats"]), batch_first=True)
    return Call(first_number(given["t"]), latents, texts, (latents.shape[-2], latents.shape[-1]))


def accepts(transformer: nn.Module) -> bool:
    """Not the models that look at another image."""
    config: Any = transformer.config
    return (
        list(config.all_patch_size) == [PATCH] and list(config.all_f_patch_size) == [1] and not config.siglip_feat_dim
    )


ZIMAGE = Backbone(
    name="Z-Image transformer",
    denoiser="transformer",
    kind="ZImageTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=zimage_layers,
    features=zimage_features,
    encode_text=encode_qwen3,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_z_image.ZSingleStreamAttnProcessor",
    accepts=accepts,
    left_alone=("context_refiner.*", "noise_refiner.*"),
    call=call,
    time_is_reversed=True,
    text_is_first_half=True,
    patch=PATCH,
    half=torch.bfloat16,
)
