"""Collect the attention maps of all prompts of a query: maps of its classes and of background words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from goca.method.rescaling import TOKEN_RULES, divide
from goca.prompts import PromptAnnotation


@dataclass(frozen=True)
class PromptMaps:
    """The token maps of one prompt.

    attention   aggregated token maps, sum 1 over all tokens   [g, g, N]
    reference   token maps of the reference layer's block; None if that is not aggregated   [g, g, N]
    """

    attention: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """Attention to the words of a query, on the grid, on a common scale.

    words       one map per class, the mean (or sum) over its tokens   [K, g, g]
    rest        one per background word                                 [J, g, g]
    special     all other tokens together: start, end, padding, marks   [g, g]
    reference   the share of each class among all words of its prompt, in the reference layer's block   [K, g, g]
    space       self-attention S, row = query   [g*g, g*g]; None if the config names no self_layers
    """

    words: Tensor
    rest: Tensor
    special: Tensor
    reference: Tensor
    space: Tensor | None = None

    @cached_property
    def shares(self) -> Tensor:
        """Each map divided by the sum over classes and background words; classes first   [K + J, g, g]"""
        everything = torch.cat([self.words, self.rest])
        return divide(everything, everything.sum(0))

    def smoothed(self, maps: Tensor) -> Tensor:
        """Maps multiplied once by the space map; unchanged if there is none   [K, g, g]"""
        if self.space is None:
            return maps
        return (maps.flatten(1) @ self.space.to(maps).T).unflatten(1, maps.shape[1:])


def gather(
    maps: Sequence[PromptMaps],
    prompts: Sequence[PromptAnnotation],
    space: Tensor | None = None,
    token_rule: str = "mean",
) -> Evidence:
    """Combine the maps of a query's prompts, which share their background words.

    maps        one per prompt
    token_rule  how the maps of a class's tokens are combined: a name of TOKEN_RULES

    Maps of several prompts are made comparable: at each pixel, a prompt's classes are scaled so that its background
    words (or its other tokens, if there are none) get the same attention as on average over prompts.
    """
    parts = [read(own.attention, prompt, token_rule) for own, prompt in zip(maps, prompts, strict=True)]
    words, rests, specials = zip(*parts)
    masses = [rest.sum(0) if len(rest) else special for rest, special in zip(rests, specials)]
    mean = sum(masses[1:], masses[0]) / len(masses)
    scaled = [own * divide(mean, mass) if len(masses) > 1 else own for own, mass in zip(words, masses)]
    references = []
    for each, prompt in zip(maps, prompts):
        own, rest, _ = read(each.attention if each.reference is None else each.reference, prompt, token_rule)
        references.append(divide(own, own.sum(0) + rest.sum(0)))
    return Evidence(
        torch.cat(scaled), torch.stack(rests).mean(0), torch.stack(specials).mean(0), torch.cat(references), space
    )


def read(attention: Tensor, prompt: PromptAnnotation, token_rule: str) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of one prompt: of its classes [K, g, g], its background words [J, g, g] and all other tokens [g, g]."""

    def of(entities: Sequence[Sequence[int]]) -> Tensor:
        empty = attention.new_zeros(attention.shape[:2])
        maps = [TOKEN_RULES[token_rule](attention[..., list(tokens)]) if tokens else empty for tokens in entities]
        return torch.stack(maps) if maps else attention.new_zeros(0, *attention.shape[:2])

    content = attention[..., prompt.rescaling_token_id].sum(-1)
    special = (attention.sum(-1) - content).clamp(min=0)
    return of(list(prompt.existent_objects.values())), of(prompt.background_objects), special
