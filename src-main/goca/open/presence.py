"""Presence of a class in an image: a raw score from its map before normalisation, and its probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from goca.open.evidence import Evidence


def reference_spread(evidence: Evidence) -> Tensor:
    """The standard deviation over the grid of a word's share in the reference layer's block, smoothed by S   [K]

    A present word stands out somewhere; an absent one gets a little attention everywhere.
    """
    return evidence.smoothed(evidence.reference).flatten(1).std(1)


def share_spread(evidence: Evidence) -> Tensor:
    """`reference_spread` of the aggregated maps   [K]"""
    return evidence.smoothed(evidence.shares)[: len(evidence.words)].flatten(1).std(1)


def share_peak(evidence: Evidence) -> Tensor:
    """The highest share of a class among classes and background words, smoothed by S   [K]"""
    return evidence.smoothed(evidence.shares)[: len(evidence.words)].amax((1, 2))


def mass_peak(evidence: Evidence) -> Tensor:
    """The highest share of a word in the attention to all tokens, smoothed by S   [K]"""
    return evidence.smoothed(evidence.words).amax((1, 2))


DEFAULT = "reference spread"  # also used if a probe has no word to compare with

PRESENCE_RULES: dict[str, Callable[[Evidence], Tensor]] = {
    "reference spread": reference_spread,
    "share spread": share_spread,
    "share peak": share_peak,
    "mass peak": mass_peak,
}


@dataclass(frozen=True)
class Judgement:
    """Presence of the classes of a query: raw scores, probabilities, and whether each is judged present   [K] each"""

    raw: Tensor
    probability: Tensor
    present: Tensor

    @classmethod
    def of(cls, raw: Tensor, slope: float, midpoint: float, least: float) -> Judgement:
        """Calibrate raw scores; classes with a probability of at least `least` are present."""
        found = probability(raw, slope, midpoint)
        return cls(raw, found, found >= least)


def probability(score: Tensor, slope: float, midpoint: float) -> Tensor:
    """1 / (1 + (midpoint / score)^slope), a logistic curve of the score's logarithm   [K] in 0..1

    A class with the score 0 has no tokens, and its probability is 0.
    """
    return torch.sigmoid(slope * (score.clamp(min=1e-12).log() - torch.tensor(midpoint).log().to(score))) * (score > 0)
