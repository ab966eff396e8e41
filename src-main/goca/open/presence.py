"""Whether a word is there: a raw score per class, from its map before any normalisation, and its probability."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goca.open.evidence import Evidence


def reference_spread(evidence: Evidence) -> Tensor:
    """The standard deviation over the grid of a word's share in the reference layer's block, smoothed by S   [K]

    A word that is there has places where it stands out; one that is not takes a little everywhere.
    """
    return evidence.smoothed(evidence.reference).flatten(1).std(1)


def share_spread(evidence: Evidence) -> Tensor:
    """The same of the aggregated maps   [K]"""
    return evidence.smoothed(evidence.shares)[: len(evidence.words)].flatten(1).std(1)


def share_peak(evidence: Evidence) -> Tensor:
    """The highest share of a word among all words and what stands for the rest, smoothed by S   [K]"""
    return evidence.smoothed(evidence.shares)[: len(evidence.words)].amax((1, 2))


def mass_peak(evidence: Evidence) -> Tensor:
    """The highest share of a word in the whole attention, smoothed by S   [K]"""
    return evidence.smoothed(evidence.words).amax((1, 2))


PRESENCE_RULES: dict[str, Callable[[Evidence], Tensor]] = {
    "reference spread": reference_spread,
    "share spread": share_spread,
    "share peak": share_peak,
    "mass peak": mass_peak,
}


def probability(score: Tensor, slope: float, midpoint: float) -> Tensor:
    """1 / (1 + (midpoint / score)^slope), a logistic curve of the score's logarithm   [K] in 0..1

    A word with the score 0 has no token, and is never there.
    """
    return torch.sigmoid(slope * (score.clamp(min=1e-12).log() - torch.tensor(midpoint).log().to(score))) * (score > 0)
