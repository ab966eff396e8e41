"""Kandinsky 5 (images): blocks of self- and cross-attention; the text is refined by blocks of its own."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.calls import Call, first_number
from diffusion_feature.chat import PromptReader, Template, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import numbered
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import padded_tokens
from diffusion_feature.weights import weight_of

CLIP = 77  # tokens
BEFORE = (
    "<|im_start|>system\nYou are a prompt engineer. Describe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>"


def cleaned(prompt: str) -> str:
    """Without HTML entities, and with single blanks, as the pipeline does it."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


TEMPLATE = Template(lambda tokenizer, prompt: BEFORE + cleaned(prompt) + AFTER, length=512, drop=40)


def kandinsky_layers(transformer: Any) -> list[AttentionLayer]:
    layers = []
    for name, block in numbered(transformer.visual_transformer_blocks):
        for layout, module in (("self", block.self_attention), ("cross", block.cross_attention)):
            layers.append(AttentionLayer(name, layout, module, partial(weight_of, module.out_layer)))
    return layers


def kandinsky_features(transformer: Any) -> dict[str, DenseFeature]:
    features = {}
    for name, block in numbered(transformer.visual_transformer_blocks):
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            tokens = "image" if letter == "q" else "text"
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.self_attention, f"to_{word}"))
            features[f"{name}-cross-{letter}"] = DenseFeature(getattr(block.cross_attention, f"to_{word}"), tokens)
        features[f"{name}-attn-out"] = DenseFeature(block.self_attention)
        features[f"{name}-cross-out"] = DenseFeature(block.cross_attention)
        features[f"{name}-out"] = DenseFeature(block)
    return features


def encode_qwen_clip(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen2.5-VL's last states [B, N, c], and CLIP's pooled state [B, p]"""
    weight = like(parts["transformer"])
    reader = PromptReader(parts["tokenizer"], TEMPLATE)
    states, _, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-1, masked=False))
    clip = parts["text_encoder_2"]
    tokens, _ = padded_tokens(parts["tokenizer_2"], clip, [*map(cleaned, prompts)], CLIP)
    arguments = {
        "encoder_hidden_states": states.to(weight),
        "pooled_projections": clip(**tokens).pooler_output.to(weight),
        "text_rope_pos": torch.arange(states.shape[1], device=weight.device),
    }
    return Conditioning(arguments, states.shape[1], cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    """Videos of one frame, channels last   [B, 1, h, w, c]"""
    transformer = parts["transformer"]
    weight, patch = like(transformer), transformer.patch_size
    sides = (1, *(side // size for side, size in zip(latents.shape[-2:], patch[1:])))
    velocity = transformer(
        latents.permute(0, 2, 3, 1)[:, None].to(weight),
        timestep=torch.full((len(latents),), float(level.timestep)).to(weight),
        visual_rope_pos=[torch.arange(side, device=latents.device) for side in sides],
        scale_factor=[1.0, 1.0, 1.0],
        **conditioning.arguments,
    ).sample
    return velocity[:, 0].permute(0, 3, 1, 2)


def call(given: Mapping[str, Any], patch: int) -> Call:
    latents = given["hidden_states"]
    side = (latents.shape[2], latents.shape[3])
    return Call(first_number(given["timestep"]), latents, given["encoder_hidden_states"], side)


def accepts(transformer: nn.Module) -> bool:
    """Not the models that are given another image or video, nor sparse attention."""
    config: Any = transformer.config
    return not config.visual_cond and config.attention_type == "regular"


KANDINSKY5 = Backbone(
    name="Kandinsky 5 transformer",
    denoiser="transformer",
    kind="Kandinsky5Transformer3DModel",
    parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=kandinsky_layers,
    features=kandinsky_features,
    encode_text=encode_qwen_clip,
    encode_image=partial(vae_latents, shifted=False),
    noise_level=partial(rectified_flow, steps=50),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_kandinsky.Kandinsky5AttnProcessor",
    accepts=accepts,
    left_alone=("text_transformer_blocks.*",),
    call=call,
    half=torch.bfloat16,
)
