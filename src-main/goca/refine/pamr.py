"""Pixel-adaptive mask refinement (Araslanov and Roth, 2020): masks spread to neighbours of similar colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goca.refine.errors import RefineError
from goca.refine.images import bounded, check_maps, rgb_tensor

SOFTNESS = 0.1  # unit of colour distances, relative to the local standard deviation
PLACES = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def pamr(scores: Tensor, image: Any, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8)) -> Tensor:
    """Average each map over neighbours, weighted by colour similarity, `iterations` times.

    scores      [n, h, w] or [B, n, h, w], each map separately; resized to the image's size (bilinear, aligned corners)
    image       RGB, see `rgb_tensor`; for a batch, one for all, or a sequence of images of the same size
    dilations   distances of the eight neighbours; borders are repeated
    returns     [n, H, W] or [B, n, H, W], within the range of each input map; a NaN spreads only within its own map
    errors      RefineError; warns ImageReduced if an image has more than 7 million pixels

    >>> pamr(torch.rand(3, 16, 16), torch.rand(3, 64, 48)).shape
    torch.Size([3, 64, 48])
    """
    check_maps(scores, 4)
    if iterations < 0 or not dilations or min(dilations) < 1:
        raise RefineError(f"pamr iterations={iterations}, dilations={list(dilations)}; expected 0 or more, 1 or more")
    if scores.ndim == 4:
        several = isinstance(image, list | tuple) or getattr(image, "ndim", 3) == 4
        images = image if several else [image] * len(scores)
        if len(images) != len(scores):
            raise RefineError(f"{len(scores)} sets of maps need as many images; got {len(images)}")
        return torch.stack([pamr(maps, each, iterations, dilations) for maps, each in zip(scores, images)])
    rgb = bounded(rgb_tensor(image), max(len(scores), len(PLACES) * len(dilations))).to(scores.device)
    weights = colour_weights(rgb, dilations)  # [8 D, H, W]
    if not len(scores):
        return scores.new_zeros(0, *rgb.shape[1:])
    maps = F.interpolate(scores[None].float(), rgb.shape[1:], mode="bilinear", align_corners=True)[0]
    for _ in range(iterations):
        moved = torch.zeros_like(maps)
        for weight, shifted in zip(weights, neighbours(maps, dilations)):
            moved.addcmul_(shifted, weight)
        maps = moved
    return maps


def filtered_pamr(
    scores: Tensor, image: Any, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8), window: int = 3
) -> Tensor:
    """`pamr`, then `median` over windows of side `window`: the step `pamr` of a chain."""
    return median(pamr(scores, image, iterations, dilations), window)


def median(scores: Tensor, window: int = 3) -> Tensor:
    """The median over a window around each pixel, per map; borders are repeated   [n, h, w], `window` is odd"""
    check_maps(scores)
    if window < 1 or window % 2 == 0:
        raise RefineError(f"the median's window is {window}; expected an odd number of at least 1")
    padded = F.pad(scores[None], (window // 2,) * 4, mode="replicate")[0]
    parts = [each.unfold(0, window, 1).unfold(1, window, 1).flatten(2).median(-1).values for each in padded]
    return torch.stack(parts) if parts else scores


def colour_weights(rgb: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weight of each neighbour: softmax of -|colour difference| / (0.1 * deviation), averaged over colours

    rgb       [3, H, W];  deviation: unbiased, over all neighbours and, once per dilation, the pixel itself
    returns   [8 D, H, W]  sums to 1; equal weights where all neighbours have the same colour
    """
    distance = rgb.new_zeros((len(PLACES) - 1) * len(dilations), *rgb.shape[1:])
    for colour in rgb[:, None]:  # [1, H, W]
        block = torch.cat(list(neighbours(colour, dilations, centre=True)))  # [9 D, H, W]
        width = 1e-8 + SOFTNESS * block.std(0)
        distance += torch.cat([(each - colour).abs() / width for each in neighbours(colour, dilations)])
    return (-distance / len(rgb)).softmax(0)


def neighbours(maps: Tensor, dilations: Sequence[int], centre: bool = False) -> Iterator[Tensor]:
    """The maps shifted towards each of the eight neighbours at each dilation   [n, H, W] each, borders repeated"""
    h, w = maps.shape[1:]
    for d in dilations:
        padded = F.pad(maps[None], (d,) * 4, mode="replicate")[0]
        yield from (
            padded[:, d + i * d : d + i * d + h, d + j * d : d + j * d + w] for i, j in PLACES if centre or i or j
        )
