"""Transformer blocks with a self-attention (attn1) and a cross-attention (attn2): of UNets, PixArt and Hunyuan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from diffusion_feature.backbone import AttentionLayer, DenseFeature
from diffusion_feature.weights import weight_of


def numbered(modules: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """A plain stack of blocks by name."""
    for number, block in enumerate(modules):
        yield f"vit-block{number}", block


def block_layers(blocks: Iterable[tuple[str, Any]]) -> list[AttentionLayer]:
    layers = []
    for name, block in blocks:
        for layout, module in (("self", block.attn1), ("cross", block.attn2)):
            if module is not None:
                layers.append(AttentionLayer(name, layout, module, partial(out_projection, module)))
    return layers


def out_projection(attention: Any) -> Tensor:
    return weight_of(attention.to_out[0])


def block_features(blocks: Iterable[tuple[str, Any]]) -> dict[str, DenseFeature]:
    features = {}
    for name, block in blocks:
        for letter in "qkv":
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.attn1, f"to_{letter}"))
            if block.attn2 is not None:
                tokens = "image" if letter == "q" else "text"
                features[f"{name}-cross-{letter}"] = DenseFeature(getattr(block.attn2, f"to_{letter}"), tokens)
        features[f"{name}-attn-out"] = DenseFeature(block.attn1)
        if block.attn2 is not None:
            features[f"{name}-cross-out"] = DenseFeature(block.attn2)
        features[f"{name}-ffn-inner"] = DenseFeature(block.ff.net[0])  # before the second linear map
        features[f"{name}-out"] = DenseFeature(block)
    return features
