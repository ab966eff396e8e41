"""FLUX.2: dev, read by Mistral, and klein, read by Qwen3; latents are patches already; places have four numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.chat import PromptReader, Template, chat, language_states, several_layers
from diffusion_feature.devices import like
from diffusion_feature.families.flux import LAYOUT, single_blocks, stream_layers
from diffusion_feature.families.joint import joint_features
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.weights import weight_of

GUIDANCE = 1.0
SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
MISTRAL = Template(chat(SYSTEM, parted=True, add_generation_prompt=False), length=512, fixed=True, special=False)
QWEN3 = Template(chat(enable_thinking=False), length=512, fixed=True)


def flux2_layers(transformer: Any) -> list[AttentionLayer]:
    return stream_layers(transformer, LAYOUT, attention_columns)


def attention_columns(block: Any) -> Tensor:
    """A single-stream block projects [attention, MLP] at once: the attention's part   [D, H*d]"""
    return weight_of(block.attn.to_out)[:, : block.attn.inner_dim]


def flux2_features(transformer: Any) -> dict[str, DenseFeature]:
    """Single-stream blocks have one projection for all, so no queries, keys and values of their own."""
    features = joint_features(transformer.transformer_blocks)
    for name, block in single_blocks(transformer):
        own = block.attn.inner_dim
        features[f"{name}-attn-out"] = DenseFeature(block.attn.to_out, LAYOUT, before=True, channels=own)
        features[f"{name}-out"] = DenseFeature(block, LAYOUT)
    return features


def places(text: int, h: int, w: int) -> Tensor:
    """(image, row, column, number in the text) of each token   [text * h * w, 4]"""
    zero = torch.arange(1)
    return torch.cartesian_prod(zero, torch.arange(h), torch.arange(w), torch.arange(text))


def encode(parts: Parts, prompts: list[str], template: Template, layers: tuple[int, ...]) -> Conditioning:
    """States of three layers of the language model, side by side   [B, N, 3c]"""
    reader, weight = PromptReader(parts["tokenizer"], template), like(parts["transformer"])
    states, _, cut = language_states(reader, parts["text_encoder"], prompts, several_layers(layers))
    ids = places(template.length, 1, 1).expand(len(prompts), -1, -1).to(weight.device)
    return Conditioning({"encoder_hidden_states": states.to(weight), "txt_ids": ids}, template.length, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    transformer, count, (h, w) = parts["transformer"], len(latents), latents.shape[-2:]
    weight = like(transformer)
    guided = transformer.config.guidance_embeds
    velocity = transformer(
        latents.flatten(2).transpose(1, 2).to(weight),
        timestep=torch.full((count,), float(level.timestep), device=latents.device) / 1000,
        img_ids=places(1, h, w).expand(count, -1, -1).to(latents.device),
        guidance=torch.full((count,), GUIDANCE, device=latents.device) if guided else None,
        **conditioning.arguments,
        return_dict=False,
    )[0]
    return velocity.transpose(1, 2).unflatten(2, (h, w))


def shift(config: Any, latents: tuple[int, int], steps: int) -> float:
    """mu by the number of tokens; below 4300 also by the number of steps: a straight line through 10 and 200"""
    tokens = latents[0] * latents[1]
    at_200 = 1.6927e-4 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-5 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


def flux2(name: str, template: Template, layers: tuple[int, ...], guided: bool, steps: int) -> Backbone:
    """One of the family, by its language model."""

    def accepts(transformer: nn.Module) -> bool:
        config: Any = transformer.config
        return config.guidance_embeds == guided

    return Backbone(
        name=name,
        denoiser="transformer",
        kind="Flux2Transformer2DModel",
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        prompt=(("tokenizer", template.length),),
        template=template,
        layers=flux2_layers,
        features=flux2_features,
        encode_text=partial(encode, template=template, layers=layers),
        encode_image=vae_latents,
        noise_level=partial(rectified_flow, steps=steps, spaced=True, shift_of=shift),
        denoise=denoise,
        processor="diffusers.models.transformers.transformer_flux2.Flux2AttnProcessor",
        accepts=accepts,
        half=torch.bfloat16,
    )


FLUX2_DEV = flux2("FLUX.2 dev transformer", MISTRAL, (10, 20, 30), guided=True, steps=50)
FLUX2_KLEIN = flux2("FLUX.2 klein transformer", QWEN3, (9, 18, 27), guided=False, steps=50)
