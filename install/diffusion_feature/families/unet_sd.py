"""Stable Diffusion's UNet with one CLIP text encoder: SD 1.x and its relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.blocks import block_features, block_layers
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import variance_preserving
from diffusion_feature.text import clip_tokens


def stages(unet: Any) -> Iterator[tuple[str, Any]]:
    """The UNet's stages in the order of the forward pass, by name."""
    for level, stage in enumerate(unet.down_blocks):
        yield f"down-level{level}", stage
    if unet.mid_block is not None:
        yield "mid", unet.mid_block
    for level, stage in enumerate(unet.up_blocks):
        yield f"up-level{level}", stage


def places(unet: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Its `attentions` or `resnets` by name; the middle stage counts its repeats only where it has several."""
    for name, stage in stages(unet):
        modules = getattr(stage, kind, None) or ()
        for repeat, module in enumerate(modules):
            yield (name if name == "mid" and len(modules) == 1 else f"{name}-repeat{repeat}"), module


def blocks(unet: Any) -> Iterator[tuple[str, Any]]:
    """Its transformer blocks by name."""
    for place, vit in places(unet, "attentions"):
        for number, block in enumerate(getattr(vit, "transformer_blocks", ())):
            yield f"{place}-vit-block{number}", block


def unet_layers(unet: Any) -> list[AttentionLayer]:
    return block_layers(blocks(unet))


def unet_features(unet: Any) -> dict[str, DenseFeature]:
    features = {"in": DenseFeature(unet.conv_in, before=True), "after-conv-in": DenseFeature(unet.conv_in)}
    features |= block_features(blocks(unet))
    features |= {f"{name}-vit-out": DenseFeature(vit) for name, vit in places(unet, "attentions")}
    for name, resnet in places(unet, "resnets"):
        features[f"{name}-res-increment"] = DenseFeature(resnet.conv2)  # what it adds to its input
        features[f"{name}-res-out"] = DenseFeature(resnet)
    for name, stage in stages(unet):
        for sampler in ("downsampler", "upsampler"):
            for module in getattr(stage, f"{sampler}s", None) or ():
                features[f"{name}-{sampler}-out"] = DenseFeature(module)
    return features | {"out": DenseFeature(unet.conv_out)}


def encode_clip(parts: Parts, prompts: list[str]) -> Conditioning:
    """The last hidden states of CLIP   [B, N, c]."""
    encoder, unet = parts["text_encoder"], parts["unet"]
    tokens, cut = clip_tokens(parts["tokenizer"], encoder, prompts)
    mask = tokens["attention_mask"] if getattr(encoder.config, "use_attention_mask", False) else None
    states = encoder(tokens["input_ids"], attention_mask=mask)[0].to(like(unet))
    return Conditioning({"encoder_hidden_states": states}, length=states.shape[1], cut=cut)


def given_states(parts: Parts, arguments: Mapping[str, Any]) -> Tensor:
    return arguments["encoder_hidden_states"]


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    unet = parts["unet"]
    timestep = torch.full((len(latents),), int(level.timestep), device=latents.device)
    return unet(latents.to(like(unet)), timestep, **conditioning.arguments, return_dict=False)[0]


def accepts(unet: Any) -> bool:
    return unet.config.addition_embed_type is None


UNET_SD = Backbone(
    name="Stable Diffusion UNet",
    denoiser="unet",
    kind="UNet2DConditionModel",
    parts=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", None),),
    layers=unet_layers,
    features=unet_features,
    encode_text=encode_clip,
    encode_image=vae_latents,
    noise_level=variance_preserving,
    denoise=denoise,
    accepts=accepts,
    attended=given_states,
)
