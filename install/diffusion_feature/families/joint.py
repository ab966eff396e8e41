"""Blocks in which text and image tokens attend jointly: with projections of their own, or with the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, DenseFeature, Parts, no_tokens
from diffusion_feature.errors import ExtractorError
from diffusion_feature.families.blocks import numbered, out_projection
from diffusion_feature.latents import size_in_pixels

PATCH = 2  # side of an image token, in latent pixels
TEXT_PROJECTIONS = {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj"}


def joint_features(blocks: Iterable[Any], part: int = 1) -> dict[str, DenseFeature]:
    """Queries, keys and values of image ("self") and text tokens, attention outputs and block outputs of the image.

    part   which of a block's two outputs is the image's
    """
    features = {}
    for name, block in numbered(blocks):
        for letter, text in TEXT_PROJECTIONS.items():
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.attn, f"to_{letter}"))
            features[f"{name}-text-{letter}"] = DenseFeature(getattr(block.attn, text), "text")
        features[f"{name}-attn-out"] = DenseFeature(block.attn)
        features[f"{name}-out"] = DenseFeature(block, part=part)
    return features


def stack_layers(
    blocks: Iterable[tuple[str, Any]],
    layout: str,
    attention: str = "attn",
    own: Callable[[int], int] = no_tokens,
) -> list[AttentionLayer]:
    """Blocks whose attention, of that name, has one projection for the tokens of text and image."""
    modules = ((name, getattr(block, attention)) for name, block in blocks)
    return [AttentionLayer(name, layout, module, partial(out_projection, module), own=own) for name, module in modules]


def stack_features(
    blocks: Iterable[tuple[str, Any]], layout: str, attention: str = "attn", parted: bool = False
) -> dict[str, DenseFeature]:
    """Queries, keys, values, attention outputs and block outputs of the image.

    parted   the outputs are (image, text) instead of one tensor
    """
    features, out = {}, "image" if parted else layout
    for name, block in blocks:
        module = getattr(block, attention)
        for letter in "qkv":
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(module, f"to_{letter}"), layout)
        features[f"{name}-attn-out"] = DenseFeature(module, out)
        features[f"{name}-out"] = DenseFeature(block, out)
    return features


def refuse_odd(parts: Parts, latents: Tensor) -> None:
    """Image tokens are patches of 2 x 2 latent pixels."""
    if any(side % PATCH for side in latents.shape[-2:]):
        h, w = size_in_pixels(parts, latents)
        step = PATCH * h // latents.shape[-2]
        raise ExtractorError(f"img_size {h} x {w} cannot be cut into image tokens: both must be multiples of {step}")
