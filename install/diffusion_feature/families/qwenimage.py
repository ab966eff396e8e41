"""Qwen-Image: double-stream blocks only; Qwen2.5-VL reads the prompt, between instructions that are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.calls import Call, CallNotUnderstood, first_number
from diffusion_feature.chat import PromptReader, Template, between, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.families.joint import PATCH, joint_features, stack_layers
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

GUIDANCE = 1.0
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
TEMPLATE = Template(between(BEFORE, "<|im_end|>\n<|im_start|>assistant\n"), length=1024, drop=34)


def qwen_layers(transformer: Any) -> list[AttentionLayer]:
    return stack_layers(numbered(transformer.transformer_blocks), "text-first")


def qwen_features(transformer: Any) -> dict[str, DenseFeature]:
    return joint_features(transformer.transformer_blocks)


def encode_qwen(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen2.5-VL's last states   [B, N, c]"""
    reader = PromptReader(parts["tokenizer"], TEMPLATE)
    states, _, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-1))
    arguments = {"encoder_hidden_states": states.to(like(parts["transformer"])), "encoder_hidden_states_mask": None}
    return Conditioning(arguments, states.shape[1], cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    count, (h, w) = len(latents), latents.shape[-2:]
    guided = parts["transformer"].config.guidance_embeds
    more = {
        "img_shapes": [[(1, h // PATCH, w // PATCH)]] * count,
        "guidance": torch.full((count,), GUIDANCE, device=latents.device) if guided else None,
    }
    return packed_forward(parts, latents, level, conditioning.arguments | more, placed=False)


def call(given: Mapping[str, Any], patch: int) -> Call:
    """Latents are tokens; `img_shapes` tells the sides of the image that is made, then those of other images."""
    (frames, h, w), *others = given["img_shapes"][0]
    if frames != 1:
        raise CallNotUnderstood(f"the denoiser was given {frames} layers of an image; understood is one")
    text, beside = given["encoder_hidden_states"], sum(map(prod, others))
    return Call(first_number(given["timestep"]), given["hidden_states"], text, (h * patch, w * patch), beside)


def accepts(transformer: nn.Module) -> bool:
    """Not the models that tell images apart by their time or their layer."""
    config: Any = transformer.config
    return not (config.zero_cond_t or config.use_additional_t_cond or config.use_layer3d_rope)


QWEN_IMAGE = Backbone(
    name="Qwen-Image transformer",
    denoiser="transformer",
    kind="QwenImageTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=qwen_layers,
    features=qwen_features,
    encode_text=encode_qwen,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_qwenimage.QwenDoubleStreamAttnProcessor2_0",
    accepts=accepts,
    call=call,
    patch=PATCH,
    half=torch.bfloat16,
)
