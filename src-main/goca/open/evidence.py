"""What the prompts of one query say of an image, brought together: maps of words, maps of what stands for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from goca.method.rescaling import TOKEN_RULES, divide
from goca.prompts import PromptAnnotation


@dataclass(frozen=True)
class Look:
    """What one forward says of one prompt.

    attention   aggregated token maps, sum 1 over all tokens   [g, g, N]
    reference   the same of the reference layer's block alone; None where that is not aggregated   [g, g, N]
    """

    attention: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """Attention to the words of a query, on the grid, all on one scale.

    words       one map per class, the mean (or sum) over its tokens   [K, g, g]
    rest        one per entity that stands for the rest                 [J, g, g]
    special     all other tokens together: start, end, padding, marks   [g, g]
    reference   the share of each class among all words of its prompt, in the reference layer's block   [K, g, g]
    space       self-attention S, row = query   [g*g, g*g]; None where the config names no map for it
    """

    words: Tensor
    rest: Tensor
    special: Tensor
    reference: Tensor
    space: Tensor | None = None

    @cached_property
    def shares(self) -> Tensor:
        """Of each class among the classes and what stands for the rest, then of the rest   [K + J, g, g]"""
        everything = torch.cat([self.words, self.rest])
        return divide(everything, everything.sum(0))

    def smoothed(self, maps: Tensor) -> Tensor:
        """Maps [K, g, g] moved once along self-attention; as they are where there is none."""
        if self.space is None:
            return maps
        return (maps.flatten(1) @ self.space.to(maps).T).unflatten(1, maps.shape[1:])


def gather(
    looks: Sequence[Look], prompts: Sequence[PromptAnnotation], space: Tensor | None = None, token_rule: str = "mean"
) -> Evidence:
    """One look per prompt; the prompts' background objects are the same.

    token_rule  a name of TOKEN_RULES: what the map of several tokens is
    Of several prompts, words are scaled so that the shared words (without such: the other tokens) have their mean mass.
    """
    parts = [read(look.attention, prompt, token_rule) for look, prompt in zip(looks, prompts, strict=True)]
    words, rests, specials = zip(*parts)
    masses = [rest.sum(0) if len(rest) else special for rest, special in zip(rests, specials)]
    mean = sum(masses[1:], masses[0]) / len(masses)
    scaled = [maps * divide(mean, mass) if len(masses) > 1 else maps for maps, mass in zip(words, masses)]
    references = []
    for look, prompt in zip(looks, prompts):
        maps, rest, _ = read(look.attention if look.reference is None else look.reference, prompt, token_rule)
        references.append(divide(maps, maps.sum(0) + rest.sum(0)))
    return Evidence(
        torch.cat(scaled), torch.stack(rests).mean(0), torch.stack(specials).mean(0), torch.cat(references), space
    )


def read(attention: Tensor, prompt: PromptAnnotation, token_rule: str) -> tuple[Tensor, Tensor, Tensor]:
    """The maps of words [K, g, g], of the rest [J, g, g] and of all other tokens [g, g] of one prompt."""

    def of(entities: Sequence[Sequence[int]]) -> Tensor:
        empty = attention.new_zeros(attention.shape[:2])
        maps = [TOKEN_RULES[token_rule](attention[..., list(tokens)]) if tokens else empty for tokens in entities]
        return torch.stack(maps) if maps else attention.new_zeros(0, *attention.shape[:2])

    content = attention[..., prompt.rescaling_token_id].sum(-1)
    special = (attention.sum(-1) - content).clamp(min=0)
    return of(list(prompt.existent_objects.values())), of(prompt.background_objects), special
