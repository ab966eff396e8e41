"""Denoisers that are given patches of 2 x 2 latent pixels as tokens, with the place of each: Flux and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import NoiseLevel, Parts
from diffusion_feature.devices import like
from diffusion_feature.families.joint import PATCH, refuse_odd


def pack(latents: Tensor) -> Tensor:
    """Patches of 2 x 2 latent pixels as tokens   [B, c, h, w] -> [B, h/2 * w/2, 4c]"""
    patches = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # [B, c, h/2, 2, w/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`   [B, h/2 * w/2, 4c] -> [B, c, h, w]"""
    patches = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (h // PATCH, w // PATCH))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(h: int, w: int, image: int = 0, first: int = 0) -> Tensor:
    """(image, row, column) of each image token; rows and columns are counted from `first`   [h*w, 3]"""
    rows, columns = (torch.arange(side).float() + first for side in (h, w))
    return torch.cartesian_prod(torch.tensor([float(image)]), rows, columns)


def packed_forward(
    parts: Parts,
    latents: Tensor,
    level: NoiseLevel,
    arguments: dict[str, Any],
    unit: float = 1000,
    image: int = 0,
    first: int = 0,
    placed: bool = True,
) -> Tensor:
    """One forward on latents [B, c, h, w], as which the output comes too.

    unit          the denoiser is told timestep / unit
    image, first  see `places`
    placed        it is told the place of each token
    """
    refuse_odd(parts, latents)
    transformer, (h, w) = parts["transformer"], latents.shape[-2:]
    weight = like(transformer)
    timestep = torch.full((len(latents),), float(level.timestep), device=latents.device)
    if level.as_pipeline:  # in bfloat16 407.08 becomes 408, and .40708 would become .40625
        timestep = timestep.to(weight)
    ids = {"img_ids": places(h // PATCH, w // PATCH, image, first).to(latents.device)} if placed else {}
    velocity = transformer(
        pack(latents).to(weight),
        timestep=timestep / unit,
        **ids,
        **arguments,
        return_dict=False,
    )[0]
    return unpack(velocity, h, w)
