"""Per-pixel rescaling (arXiv 2603.06178): from token maps to class and background maps, by chains of small steps.

The default rule, "sum-1 rescaling + per-token renorm+": divide each map by the total attention to content words at
each pixel, blur it (Gaussian, 5 x 5, sigma 1.1), and scale it to 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from goca.method.resizing import positions

BLUR_SIZE, BLUR_SIGMA = 5, 1.1


@dataclass(frozen=True)
class RescaleContext:
    """Unmodified maps [K, h, w] and the total attention to content words [h, w], available to every step."""

    maps: Tensor
    content: Tensor


def share(maps: Tensor, context: RescaleContext) -> Tensor:
    """Divide by the total attention to content words at each pixel; 0 where that total is 0."""
    return divide(maps, context.content)


def peak(maps: Tensor, context: RescaleContext) -> Tensor:
    """Divide each map by its maximum over pixels."""
    return divide(maps, maps.amax((1, 2), keepdim=True))


def smooth(maps: Tensor, context: RescaleContext) -> Tensor:
    """Gaussian blur."""
    return gaussian_blur(maps)


def spread(maps: Tensor, context: RescaleContext) -> Tensor:
    """Scale each map to 0..1."""
    return min_max(maps)


def rank(maps: Tensor, context: RescaleContext) -> Tensor:
    """Replace each value by its rank in the map, scaled to 0..1; equal values share their mean rank."""
    return torch.stack([rank_pixels(each) for each in maps])


def times_raw(maps: Tensor, context: RescaleContext) -> Tensor:
    """Multiply by the unmodified maps."""
    return maps * context.maps


Step = Callable[[Tensor, RescaleContext], Tensor]
RESCALE_RULES: dict[str, tuple[Step, ...]] = {
    "raw": (),
    "per-token renorm": (peak,),
    "per-token renorm+": (smooth, spread),
    "sum-1 rescaling": (share,),
    "sum-1 rescaling + per-token renorm": (share, peak),
    "sum-1 rescaling + per-token renorm+": (share, smooth, spread),
    "sum-1 rescaling + per-token ranking renorm": (share, rank, spread),
    "sum-1 rescaling + per-token renorm x raw": (share, peak, times_raw),
    "sum-1 rescaling + per-token renorm+ x raw": (share, smooth, spread, times_raw),
    "sum-1 rescaling + per-token renorm+ x raw + renorm": (share, smooth, spread, times_raw, smooth, spread),
}


TOKEN_RULES: dict[str, Callable[[Tensor], Tensor]] = {  # maps of an entity's tokens [h, w, n] -> its map [h, w]
    "mean": lambda maps: maps.mean(-1),
    "sum": lambda maps: maps.sum(-1),
}


def rescale(
    attention: Tensor,
    entities: Sequence[Sequence[int]],
    content: Sequence[int],
    rule: str,
    token_rule: str = "mean",
) -> Tensor:
    """Class and background maps from token maps, one per entity.

    attention   token maps, sum 1 over tokens        [h, w, N]
    entities    token positions of each class or background entity
    content     token positions of all content words
    rule        a name of RESCALE_RULES
    token_rule  a name of TOKEN_RULES: how the maps of an entity's tokens are combined. Without tokens the mean is NaN,
                the sum 0
    returns     [K, h, w]; in 0..1 after a rule that ends in "renorm+" or "renorm"

    >>> attention = torch.rand(16, 16, 77).softmax(-1)
    >>> rescale(attention, [[1], [3, 4]], [1, 3, 4], "sum-1 rescaling + per-token renorm+").shape
    torch.Size([2, 16, 16])
    """
    if not entities:
        return attention.new_zeros(0, *attention.shape[:2])
    maps = torch.stack([TOKEN_RULES[token_rule](tokens_of(attention, tokens)) for tokens in entities])
    return apply_rule(maps, tokens_of(attention, content).sum(-1), rule)


def tokens_of(attention: Tensor, tokens: Sequence[int]) -> Tensor:
    """The maps of some tokens   [h, w, N] -> [h, w, n]"""
    return attention[..., positions(tokens, attention.device)]


def rescale_scores(scores: Tensor, rule: str = "per-token renorm+") -> Tensor:
    """Apply a rescaling rule to finished maps [n, h, w]; their sum replaces that of the content words."""
    return apply_rule(scores, scores.sum(0), rule)


def apply_rule(maps: Tensor, content: Tensor, rule: str) -> Tensor:
    """Apply the steps of a rule to maps [K, h, w]; content [h, w] is the sum over all content words."""
    context = RescaleContext(maps, content)
    for step in RESCALE_RULES[rule]:
        maps = step(maps, context)
    return maps


def gaussian_blur(maps: Tensor) -> Tensor:
    """5 x 5, sigma 1.1, borders reflected   [K, h, w]"""
    margin = BLUR_SIZE // 2
    kernel = gaussian_kernel(maps.device, maps.dtype)[None, None]
    padded = F.pad(maps[:, None], (margin,) * 4, mode="reflect")
    return F.conv2d(padded, kernel)[:, 0]


@lru_cache(maxsize=16)
def gaussian_kernel(device: torch.device = torch.device("cpu"), dtype: torch.dtype = torch.float32) -> Tensor:  # noqa: B008
    """[5, 5], sums to 1; computed on the CPU, so that it is the same on every device"""
    distance = torch.arange(BLUR_SIZE) - (BLUR_SIZE - 1) / 2
    row = torch.exp(-0.5 * (distance / BLUR_SIGMA) ** 2)
    row = row / row.sum()
    return torch.outer(row, row).to(device, dtype)


def rank_pixels(pixels: Tensor) -> Tensor:
    """The mean rank of each value, scaled to 0..1   [h, w]; a map with a NaN becomes NaN"""
    if bool(pixels.isnan().any()):
        return torch.full_like(pixels, torch.nan)
    _, places, counts = pixels.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)  # number of values up to and including each distinct one
    return ((last - (counts + 1) / 2) / max(pixels.numel() - 1, 1)).to(pixels)[places]


def min_max(maps: Tensor) -> Tensor:
    """Scale each map to 0..1   [K, h, w]; a constant map becomes 0, NaN stays NaN."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return divide(maps - low, high - low)


def divide(maps: Tensor, by: Tensor) -> Tensor:
    """maps / by, and 0 where `by` is 0."""
    return maps.new_zeros(()).where(by == 0, maps / by)
