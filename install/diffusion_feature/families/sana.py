"""SANA: linear self-attention, which has no maps, and cross-attention to Gemma 2's text; latents of 1/32."""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.chat import PromptReader, Template, language_states, last_states
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered, out_projection
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow


@cache
def instruction() -> str:
    """The instruction before every prompt, read from the installed diffusers."""
    from diffusers import SanaPipeline  # seconds to import

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def dropped(tokenizer: Any) -> int:
    """All tokens of the instruction but the first and the last."""
    return len(tokenizer(instruction())["input_ids"]) - 2


def write(tokenizer: Any, prompt: str) -> str:
    return instruction() + prompt.lower().strip()


TEMPLATE = Template(write, length=300, drop=dropped, keep=1, fixed=True, left=False)


def sana_layers(transformer: Any) -> list[AttentionLayer]:
    return [
        AttentionLayer(name, "cross", block.attn2, partial(out_projection, block.attn2))
        for name, block in numbered(transformer.transformer_blocks)
    ]


def sana_features(transformer: Any) -> dict[str, DenseFeature]:
    features = {}
    for name, block in numbered(transformer.transformer_blocks):
        for letter in "qkv":
            tokens = "image" if letter == "q" else "text"
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.attn1, f"to_{letter}"))
            features[f"{name}-cross-{letter}"] = DenseFeature(getattr(block.attn2, f"to_{letter}"), tokens)
        features[f"{name}-attn-out"] = DenseFeature(block.attn1)
        features[f"{name}-cross-out"] = DenseFeature(block.attn2)
        features[f"{name}-out"] = DenseFeature(block)
    return features


def encode_gemma(parts: Parts, prompts: list[str]) -> Conditioning:
    """Gemma's last states of the first token, the instruction's last and the prompt [B, N, c]; their mask [B, N]"""
    reader, weight = PromptReader(parts["tokenizer"], TEMPLATE), like(parts["transformer"])
    states, mask, cut = language_states(reader, parts["text_encoder"], prompts, last_states)
    arguments = {"encoder_hidden_states": states.to(weight), "encoder_attention_mask": mask.to(weight.device)}
    return Conditioning(arguments, TEMPLATE.length, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    transformer = parts["transformer"]
    timestep = torch.full((len(latents),), float(level.timestep), device=latents.device)
    return transformer(
        latents.to(like(transformer)),
        timestep=timestep * transformer.config.timestep_scale,
        **conditioning.arguments,
        return_dict=False,
    )[0]


def accepts(transformer: nn.Module) -> bool:
    """Not the distilled models, conditioned on a guidance scale."""
    config: Any = transformer.config
    return not config.guidance_embeds and config.patch_size == 1


SANA = Backbone(
    name="SANA transformer",
    denoiser="transformer",
    kind="SanaTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=sana_layers,
    features=sana_features,
    encode_text=encode_gemma,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=20),
    denoise=denoise,
    processor="diffusers.models.transformers.sana_transformer.SanaAttnProcessor2_0",
    accepts=accepts,
    left_alone=("transformer_blocks.*.attn1",),
    half=torch.bfloat16,
)
