"""What differs between model families, as one record: everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Parts = Mapping[str, Any]  # a pipeline's parts by their name in model_index.json: "unet", "vae", "tokenizer", ...


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of the denoiser.

    block      what it is part of, e.g. "up-level1-repeat0-vit-block0"; `block + "-cross-map"` is a layer id
    layout     "self": image tokens ask image tokens; "cross": image tokens ask text tokens
    out_proj   its output projection's weight, without bias   [D, H*d]
    """

    block: str
    layout: str
    module: nn.Module
    out_proj: Callable[[], Tensor]

    @property
    def maps(self) -> tuple[str, ...]:
        """The layer ids of the attention maps that this module makes."""
        return (f"{self.block}-{self.layout}-map",)


@dataclass(frozen=True)
class DenseFeature:
    """A module whose output is a feature: image tokens become [B, C, h, w], text tokens stay [B, N, C]."""

    module: nn.Module
    tokens: str = "image"


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about the prompts.

    arguments   keyword arguments of the denoiser's forward
    length      text tokens N
    cut         per prompt, the tokens that did not fit
    """

    arguments: dict[str, Any]
    length: int
    cut: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class NoiseLevel:
    """x_t = signal * x_0 + noise * e, and what the denoiser is given as its timestep."""

    timestep: float
    signal: float
    noise: float


@dataclass(frozen=True)
class Backbone:
    """One family of denoisers: where its layers are, how it is conditioned and how noise is added."""

    name: str
    denoiser: str  # the part that is tapped: "unet" or "transformer"
    parts: tuple[str, ...]  # the parts that must be there; nothing else is loaded
    accepts: Callable[[nn.Module], bool]
    layers: Callable[[nn.Module], list[AttentionLayer]]
    features: Callable[[nn.Module], dict[str, DenseFeature]]
    encode_text: Callable[[Parts, list[str]], Conditioning]
    encode_image: Callable[[Parts, Tensor, str, torch.Generator | None], Tensor]
    noise_level: Callable[[Any, int, str], NoiseLevel]
    denoise: Callable[[Parts, Tensor, NoiseLevel, Conditioning], Tensor]
