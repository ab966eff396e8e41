"""Kinds of VAEs: their downsampling factor, and the normalisation that the denoiser expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PATCH = 2  # FLUX.2's latents are patches of 2 x 2 pixels, as channels


@dataclass(frozen=True)
class VaeKind:
    """One kind of VAE.

    factor    its config -> pixels per latent pixel, along one side
    channels  its config -> channels of the latents that the denoiser is given
    latents   (VAE, encoded images [B, c, h, w]) -> latents of the denoiser
    frames    the VAE encodes videos [B, 3, frames, h, w]; an image is one frame
    """

    factor: Callable[[Any], int]
    channels: Callable[[Any], int]
    latents: Callable[[Any, Tensor], Tensor]
    frames: bool = False


def kind_of(vae: Any) -> VaeKind:
    return KINDS.get(type(vae).__name__, PLAIN)


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Normalise by the VAE's statistics per channel, if it has any, and its scale."""
    config = vae.config
    mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
        return (latents - mean) * (getattr(config, "scaling_factor", None) or 1.0) / std
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def patches(vae: Any, latents: Tensor) -> Tensor:
    """Patches of 2 x 2 latent pixels as channels, by the statistics of the VAE's batch norm   [B, 4c, h/2, w/2]"""
    mean, variance = (each.view(1, -1, 1, 1).to(latents) for each in (vae.bn.running_mean, vae.bn.running_var))
    return (patched(latents) - mean) / (variance + vae.config.batch_norm_eps).sqrt()


def patched(latents: Tensor) -> Tensor:
    """[B, c, h, w] -> [B, 4c, h/2, w/2]"""
    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


PLAIN = VaeKind(
    factor=lambda config: 2 ** (len(config.block_out_channels) - 1),
    channels=lambda config: config.latent_channels,
    latents=normalised,
)
VIDEO = VaeKind(
    factor=lambda config: 2 ** len(config.temperal_downsample),
    channels=lambda config: config.z_dim,
    latents=normalised,
    frames=True,
)
KINDS = {
    "AutoencoderKLFlux2": VaeKind(
        factor=lambda config: PATCH * PLAIN.factor(config),
        channels=lambda config: PATCH**2 * config.latent_channels,
        latents=patches,
    ),
    "AutoencoderKLQwenImage": VIDEO,
    "AutoencoderKLWan": VIDEO,
    "AutoencoderDC": VaeKind(
        factor=lambda config: 2 ** (len(config.encoder_block_out_channels) - 1),
        channels=lambda config: config.latent_channels,
        latents=normalised,
    ),
    "AutoencoderKLHunyuanImage": VaeKind(
        factor=lambda config: config.spatial_compression_ratio,
        channels=lambda config: config.latent_channels,
        latents=normalised,
    ),
}
