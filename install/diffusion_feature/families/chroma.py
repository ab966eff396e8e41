"""Chroma: Flux's blocks without guidance embedding and without CLIP; the padding of T5's text is masked but for one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.flux import LAYOUT, flux_features, flux_layers, single_blocks
from diffusion_feature.families.joint import PATCH
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow
from diffusion_feature.text import encoder_states, written_out

TEXT = 512  # T5 tokens


def chroma_features(transformer: Any) -> dict[str, DenseFeature]:
    """Flux's; single-stream blocks return text and image in one tensor."""
    own = {f"{name}-out": DenseFeature(block, LAYOUT) for name, block in single_blocks(transformer)}
    return flux_features(transformer) | own


def encode_t5(parts: Parts, prompts: list[str]) -> Conditioning:
    """T5's states [B, N, c]; which of them are words or the first padding token   [B, N]

    diffusers multiplies the mask with itself and adds it to the logits as 0 and 1, so that padding is weakened by e
    and not hidden; it is handed over in the type of the states, as there.
    """
    weight = like(parts["transformer"])
    read = written_out(parts["tokenizer"], prompts)
    states, mask, cut = encoder_states(parts["tokenizer"], parts["text_encoder"], read, TEXT, masked=True)
    words = mask.sum(1, keepdim=True)
    seen = torch.arange(TEXT, device=words.device) <= words
    arguments = {
        "encoder_hidden_states": states.to(weight),
        "txt_ids": torch.zeros(TEXT, 3, device=weight.device),
        "attention_mask": seen.to(weight),
    }
    return Conditioning(arguments, TEXT, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    text = conditioning.arguments["attention_mask"]
    tokens = latents[0, 0].numel() // PATCH**2
    mask = torch.cat([text, torch.ones(len(latents), tokens, device=text.device, dtype=text.dtype)], dim=1)
    return packed_forward(parts, latents, level, conditioning.arguments | {"attention_mask": mask})


CHROMA = Backbone(
    name="Chroma transformer",
    denoiser="transformer",
    kind="ChromaTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEXT),),
    layers=flux_layers,
    features=chroma_features,
    encode_text=encode_t5,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_flux.FluxAttnProcessor",
    patch=PATCH,
    half=torch.bfloat16,
)
