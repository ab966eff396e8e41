"""LongCat-Image: Flux's blocks; Qwen2.5-VL reads the prompt, padded, between instructions that are dropped again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import Backbone, Conditioning, NoiseLevel, Parts
from diffusion_feature.chat import PromptReader, Template, bare, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.flux import flux_features, flux_layers
from diffusion_feature.families.joint import PATCH
from diffusion_feature.families.packed import packed_forward
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

BEFORE = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


def pieces(text: str) -> Sequence[str]:
    """Split the text so that what is in quotation marks is tokenised letter by letter."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation  # seconds to import

    return [piece for part, quoted in split_quotation(text) for piece in (part if quoted else [part])]


TEMPLATE = Template(bare, length=512, fixed=True, special=False, pieces=pieces)


def encode_longcat(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen's last states of the prompt and its padding [B, N, c]; places (0, n, n) of text tokens [N, 3]"""
    tokenizer = parts["tokenizer"]
    before, after = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (BEFORE, AFTER))

    def states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        around = [ids.new_tensor([each]) for each in (before, after)]
        ids = torch.cat([around[0], ids, around[1]], dim=1)
        mask = torch.cat([torch.ones_like(around[0]), mask, torch.ones_like(around[1])], dim=1)
        found = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        return found[:, len(before) : -len(after)]

    reader = PromptReader(tokenizer, TEMPLATE)
    found, _, cut = language_states(reader, parts["text_encoder"], prompts, states)
    weight, number = like(parts["transformer"]), torch.arange(TEMPLATE.length).float()
    places = torch.stack([torch.zeros_like(number), number, number], dim=1).to(weight.device)
    return Conditioning({"encoder_hidden_states": found.to(weight), "txt_ids": places}, TEMPLATE.length, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    return packed_forward(parts, latents, level, conditioning.arguments, image=1, first=TEMPLATE.length)


LONGCAT = Backbone(
    name="LongCat-Image transformer",
    denoiser="transformer",
    kind="LongCatImageTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=flux_layers,
    features=flux_features,
    encode_text=encode_longcat,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_longcat_image.LongCatImageAttnProcessor",
    patch=PATCH,
    half=torch.bfloat16,
)
