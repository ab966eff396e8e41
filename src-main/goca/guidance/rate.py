"""The guidance rate of each pixel, from the prompt's effect in each region (Shen et al., CVPR 2024, S-CFG)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from goca.errors import GocaError

LOWEST, HIGHEST = 0.8, 3.0  # of a rate
STRONGEST = 15.0  # of rate * guidance_scale
SIGMA = 0.5  # of the smoothing
EPSILON = 1e-8


class GuidanceError(GocaError, ValueError):
    """A pipeline, a call or masks that semantic-aware guidance does not support; the message says what to do."""


def guidance_rate(
    noise_uncond: Tensor, noise_text: Tensor, token_mask: Tensor, foreground_mask: Tensor, guidance_scale: float
) -> Tensor:
    """rate = sum_k mask_k * n_f / n_k, clamped and smoothed: multiplies the guidance at each pixel.

    n = |noise_text - noise_uncond| over channels; n_k and n_f are its means over token k's region and the foreground.

    noise_uncond, noise_text    the denoiser's outputs, all channels   [B, C, h, w]
    token_mask                  region of each token, 0 or 1; may be empty, or overlap where tokens tie   [B, N, g, g]
    foreground_mask             0 or 1   [B, 1, g, g]
    guidance_scale              above 1; rate * scale stays within 15
    returns                     [B, 1, h, w], float32, in 0.8..3, or lower where 15 / scale is
    errors                      GuidanceError

    >>> uncond, text = torch.zeros(2, 4, 64, 64), torch.randn(2, 4, 64, 64)
    >>> guidance_rate(uncond, text, torch.ones(2, 3, 16, 16), torch.ones(2, 1, 16, 16), guidance_scale=7.5).shape
    torch.Size([2, 1, 64, 64])
    """
    check_shapes(noise_uncond, noise_text, token_mask, foreground_mask)
    check_scale(guidance_scale)
    size = noise_text.shape[-2:]
    change = (noise_text.float() - noise_uncond.float()).norm(dim=1, keepdim=True)  # [B, 1, h, w]
    tokens = F.interpolate(token_mask.to(change), size=size, mode="nearest")  # [B, N, h, w]
    foreground = F.interpolate(foreground_mask.to(change), size=size, mode="nearest")
    ratio = region_mean(change, foreground) / (region_mean(change, tokens) + EPSILON)  # [B, N]
    ratio = ratio * (tokens.sum((2, 3)) > 0)
    rate = (tokens * ratio[..., None, None]).sum(1, keepdim=True)
    return smooth(rate.clamp(LOWEST, HIGHEST).clamp(max=STRONGEST / guidance_scale))


def region_mean(values: Tensor, masks: Tensor) -> Tensor:
    """Mean of values [B, 1, h, w] over each mask [B, K, h, w]; 0 for an empty one   [B, K]"""
    return (values * masks).sum((2, 3)) / (masks.sum((2, 3)) + EPSILON)


@lru_cache(maxsize=16)
def smoothing_kernel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[3, 3], sums to 1"""
    row = torch.exp(-((torch.arange(-1.0, 2.0) / (2 * SIGMA)) ** 2))
    return (torch.outer(row, row) / row.sum() ** 2).to(device, dtype)


def smooth(maps: Tensor) -> Tensor:
    """3 x 3, each axis exp(-(x / (2 sigma))^2), borders reflected   [B, K, h, w]"""
    kernel = smoothing_kernel(maps.device, maps.dtype)
    padded = F.pad(maps.flatten(0, 1)[:, None], (1,) * 4, mode="reflect")
    return F.conv2d(padded, kernel[None, None])[:, 0].unflatten(0, maps.shape[:2])


def check_scale(guidance_scale: float) -> None:
    if not guidance_scale > 1:
        raise GuidanceError(
            f"guidance_scale is {guidance_scale}; expected more than 1, since there is no guidance otherwise"
        )


def check_shapes(noise_uncond: Tensor, noise_text: Tensor, token_mask: Tensor, foreground_mask: Tensor) -> None:
    shapes = [tuple(each.shape) for each in (noise_uncond, noise_text, token_mask, foreground_mask)]
    uncond, text, tokens, foreground = shapes
    fits = uncond == text and all(len(shape) == 4 and shape[0] == text[0] for shape in shapes)
    if not fits or foreground[1] != 1 or tokens[2:] != foreground[2:]:
        raise GuidanceError(
            f"expected two outputs [B, C, h, w] and masks [B, N, g, g], [B, 1, g, g]; found {uncond}, {text}, "
            f"{tokens}, {foreground}"
        )
