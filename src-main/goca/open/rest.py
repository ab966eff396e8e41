"""What stands for the rest of an image: rules that turn the evidence into class maps and a background map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goca.open.evidence import Evidence
from goca.rescaling import divide

LEAST = 1e-6  # of the background's map, so that a class that scores 0 never holds a pixel


def vocabulary(evidence: Evidence) -> Tensor:
    """Shares among the words and the background vocabulary; the rest is the highest of the vocabulary's words."""
    everything = torch.cat([evidence.words, evidence.rest])
    shares = divide(everything, everything.sum(0))
    return with_rest(shares[: len(evidence.words)], shares[len(evidence.words) :])


def special(evidence: Evidence) -> Tensor:
    """Shares among the words and all tokens that are no words: start, end, padding, marks."""
    everything = torch.cat([evidence.words, evidence.special[None]])
    shares = divide(everything, everything.sum(0))
    return with_rest(shares[:-1], shares[-1:])


def with_rest(words: Tensor, rest: Tensor) -> Tensor:
    """Class maps, then the rest's   [K + 1, g, g]"""
    highest = rest.amax(0, keepdim=True) if len(rest) else words.new_zeros(1, *words.shape[1:])
    return torch.cat([words, highest.clamp(min=LEAST)])


REST_RULES: dict[str, Callable[[Evidence], Tensor]] = {"vocabulary": vocabulary, "special": special}
