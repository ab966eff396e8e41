"""Rules that compute class scores and the background's score from the evidence: the config's field `rest`.

A rule has two parts, before and after the config's refinement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from goca.method.rescaling import divide, gaussian_blur, min_max
from goca.open.evidence import Evidence

LEAST = 1e-6  # lower limit of the background's map, so that a class with score 0 never gets a pixel
STEEPNESS = 3  # exponent in `weight`


@dataclass(frozen=True)
class Rest:
    """One rule.

    before  evidence -> class maps and the background's, to be refined   [K + 1, g, g]
    after   (refined, before, evidence, floor, half_share) -> scores   [K + 1, g, g]
    """

    before: Callable[[Evidence], Tensor]
    after: Callable[[Tensor, Tensor, Evidence, float, float], Tensor]


# --- before refinement ---------------------------------------------------------------------------------------------


def stretched(evidence: Evidence) -> Tensor:
    """Shares among classes and background words, blurred, each scaled to 0..1 over the grid; background 0."""
    maps = min_max(gaussian_blur(evidence.shares[: len(evidence.words)]))
    return torch.cat([maps, maps.new_zeros(1, *maps.shape[1:])])


def stretched_words(evidence: Evidence) -> Tensor:
    """The same for shares among the classes only."""
    maps = min_max(gaussian_blur(divide(evidence.words, evidence.words.sum(0))))
    return torch.cat([maps, maps.new_zeros(1, *maps.shape[1:])])


def with_vocabulary(evidence: Evidence) -> Tensor:
    """Unchanged shares; the background is the highest share of a background word."""
    words, rest = evidence.shares[: len(evidence.words)], evidence.shares[len(evidence.words) :]
    return torch.cat([words, rest.amax(0, keepdim=True) if len(rest) else words.new_zeros(1, *words.shape[1:])])


def with_special(evidence: Evidence) -> Tensor:
    """Shares among the classes and the sum of all other tokens; that sum is the background."""
    everything = torch.cat([evidence.words, evidence.special[None]])
    return divide(everything, everything.sum(0))


# --- after refinement ----------------------------------------------------------------------------------------------


def over_floor(refined: Tensor, before: Tensor, evidence: Evidence, floor: float, half_share: float) -> Tensor:
    """Each class map multiplied by its `weight`; the background is `floor` everywhere."""
    words = refined[:-1] * weight(evidence, half_share)[:, None, None]
    return torch.cat([words, torch.full_like(refined[-1:], floor)])


def over_otsu(refined: Tensor, before: Tensor, evidence: Evidence, floor: float, half_share: float) -> Tensor:
    """`over_floor`, after each class map is scaled so that its Otsu threshold becomes `floor`."""
    own = torch.stack([otsu(each) for each in refined[:-1]]) if len(refined) > 1 else refined.new_zeros(0)
    moved = refined[:-1] * divide(torch.full_like(own, floor), own)[:, None, None]
    return over_floor(torch.cat([moved.clamp(max=1), refined[-1:]]), before, evidence, floor, half_share)


def opposed(before: Tensor) -> Tensor:
    """Replace the background's map of zeros by 1 - the highest class map   [K + 1, g, g]

    For steps whose maps compete at each pixel (dense_crf): otherwise the classes would get every pixel.
    """
    return torch.cat([before[:-1], 1 - before[:-1].amax(0, keepdim=True)])


def after_competing(refined: Tensor, before: Tensor, evidence: Evidence, floor: float, half_share: float) -> Tensor:
    """Each class map multiplied by its `weight`; the background's map is unchanged."""
    words = refined[:-1] * weight(evidence, half_share)[:, None, None]
    return torch.cat([words, refined[-1:].clamp(min=LEAST)])


def in_range(refined: Tensor, before: Tensor, evidence: Evidence, floor: float, half_share: float) -> Tensor:
    """Each map with its range from before refinement, whose steps scale maps to 0..1."""
    low, high = (edge[:, None, None] for edge in (before.amin((1, 2)), before.amax((1, 2))))
    scores = low + min_max(refined) * (high - low)
    return torch.cat([scores[:-1], scores[-1:].clamp(min=LEAST)])


REST_RULES: dict[str, Rest] = {
    "vocabulary": Rest(stretched, over_floor),
    "vocabulary, otsu": Rest(stretched, over_otsu),
    "vocabulary's share": Rest(with_vocabulary, in_range),
    "special tokens": Rest(with_special, in_range),
    "floor alone": Rest(stretched_words, over_floor),
}


def weight(evidence: Evidence, half_share: float) -> Tensor:
    """s^3 / (s^3 + half_share^3) of the highest share s that a word reaches   [K]: 1/2 at half_share

    A scaled map reaches 1 somewhere even if the class has a low share everywhere; the weight compensates for this.
    """
    peaks = evidence.smoothed(evidence.shares)[: len(evidence.words)].amax((1, 2)) ** STEEPNESS
    return divide(peaks, peaks + half_share**STEEPNESS)


def otsu(scores: Tensor) -> Tensor:
    """Otsu's threshold of a map: it minimises the variance of the values below and above it   []"""
    values = scores.flatten().sort().values
    below = torch.arange(1, len(values), device=values.device)
    total, sums = values.sum(), values.cumsum(0)[:-1]
    between = (sums / below - (total - sums) / (len(values) - below)) ** 2 * below * (len(values) - below)
    best = int(between.argmax())
    return (values[best] + values[best + 1]) / 2
