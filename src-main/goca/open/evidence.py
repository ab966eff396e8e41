"""What the prompts of one query say of an image, brought together: maps of words, maps of what stands for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goca.prompts import PromptAnnotation
from goca.rescaling import TOKEN_RULES


@dataclass(frozen=True)
class Evidence:
    """Attention to the words of a query, on the grid, all on one scale.

    words       one map per class, the mean over its tokens   [K, g, g]
    rest        one per entity that stands for the rest        [J, g, g]
    special     all other tokens together: start, end, padding, marks   [g, g]
    Where a query took one prompt, these are shares of the attention: with `lengths` they sum to 1 at each pixel.
    """

    words: Tensor
    rest: Tensor
    special: Tensor


def evidence(attention: Sequence[Tensor], prompts: Sequence[PromptAnnotation], token_rule: str = "mean") -> Evidence:
    """From the token maps of each prompt [g, g, N]; the prompts' background objects are the same.

    token_rule  a name of TOKEN_RULES: what the map of several tokens is
    Of several prompts, words are scaled so that the shared words (without such: the other tokens) have their mean mass.
    """
    parts = [read(maps, prompt, token_rule) for maps, prompt in zip(attention, prompts, strict=True)]
    words, rests, specials = zip(*parts)
    masses = [rest.sum(0) if len(rest) else special for rest, special in zip(rests, specials)]
    mean = sum(masses[1:], masses[0]) / len(masses)
    scaled = [maps * (mean / mass.clamp(min=1e-12)) if len(masses) > 1 else maps for maps, mass in zip(words, masses)]
    return Evidence(torch.cat(scaled), torch.stack(rests).mean(0), torch.stack(specials).mean(0))


def read(attention: Tensor, prompt: PromptAnnotation, token_rule: str) -> tuple[Tensor, Tensor, Tensor]:
    """The maps of words [K, g, g], of the rest [J, g, g] and of all other tokens [g, g] of one prompt."""

    def of(entities: Sequence[Sequence[int]]) -> Tensor:
        empty = attention.new_zeros(attention.shape[:2])
        maps = [TOKEN_RULES[token_rule](attention[..., list(tokens)]) if tokens else empty for tokens in entities]
        return torch.stack(maps) if maps else attention.new_zeros(0, *attention.shape[:2])

    content = attention[..., prompt.rescaling_token_id].sum(-1)
    special = attention.sum(-1) - content
    return of(list(prompt.existent_objects.values())), of(prompt.background_objects), special
