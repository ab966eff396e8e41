"""Whether a word is there: a raw score per class, from its map before any normalisation, and its probability."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goca.open.evidence import Evidence
from goca.rescaling import divide, gaussian_blur


def share_peak(evidence: Evidence) -> Tensor:
    """The highest share of a word among all words and what stands for the rest   [K]"""
    total = evidence.words.sum(0) + evidence.rest.sum(0)
    return gaussian_blur(divide(evidence.words, total)).amax((1, 2))


def mass_peak(evidence: Evidence) -> Tensor:
    """The highest share of a word in the whole attention   [K]"""
    return gaussian_blur(evidence.words).amax((1, 2))


PRESENCE_RULES: dict[str, Callable[[Evidence], Tensor]] = {"share peak": share_peak, "mass peak": mass_peak}


def probability(score: Tensor, slope: float, midpoint: float) -> Tensor:
    """A raw score as a probability, by a logistic curve   [K] in 0..1; a score of 0 means: no token, never there."""
    return torch.where(score > 0, torch.sigmoid(slope * (score - midpoint)), score.new_zeros(()))
