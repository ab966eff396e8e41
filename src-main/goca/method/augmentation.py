"""Several looks at one picture, averaged: mirrored, under further noise, at further timesteps.

What is averaged are the token maps before rescaling, the space map and dense features; a mirrored look's are mirrored
back first. One look alone is what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from diffusion_feature.images import read_image
from PIL import ImageOps
from torch import Tensor

from goca.config import SegmenterConfig
from goca.method.aggregation import Aggregator, Plan

Picture = Any  # what `read_image` takes


@dataclass(frozen=True)
class View:
    """One look: its timestep, the number of its noise draw, and whether the picture is mirrored."""

    t: int
    draw: int = 0
    flipped: bool = False

    def picture(self, image: Picture) -> Picture:
        """The picture as this look sees it."""
        if not self.flipped:
            return image
        return ImageOps.mirror(read_image(image).stored)

    def seed(self, seed: int) -> int:
        """The picture's own seed for the first draw, and others that follow from it."""
        if self.draw == 0:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.draw}".encode()).digest()[:7], "big")


def views(config: SegmenterConfig) -> tuple[View, ...]:
    """The looks that a config asks for; the plain one first."""
    looks = product((config.t, *config.timesteps), range(config.draws), (False, True)[: 1 + config.flips])
    return tuple(View(*look) for look in looks)


def averaged(views: Sequence[View], captures: Sequence[Aggregator]) -> Capture:
    """The captures of these views as one; a plain look alone is what it is."""
    if len(captures) == 1 and not views[0].flipped:
        return captures[0]
    return Average(captures, [view.flipped for view in views])


@dataclass
class Average:
    """The captures of several looks, asked like one `Aggregator`.

    flipped   which of them are of the mirrored picture
    """

    captures: Sequence[Aggregator]
    flipped: Sequence[bool]

    @property
    def plan(self) -> Plan:
        return self.captures[0].plan

    @property
    def peak_bytes(self) -> int:
        return sum(capture.peak_bytes for capture in self.captures)

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """[B, g, g, N], sum 1 over tokens"""
        return self._mean([capture.attention_map(head_rule, layer_rule) for capture in self.captures], (2,))

    def block_map(self, block: str, head_rule: str | None = None) -> Tensor:
        """[B, g, g, N]"""
        return self._mean([capture.block_map(block, head_rule) for capture in self.captures], (2,))

    def layer_weights(self, rule: str) -> Tensor:
        """[B, M]"""
        return self._mean([capture.layer_weights(rule) for capture in self.captures], ())

    @cached_property
    def space(self) -> Tensor | None:
        """[B, g*g, g*g], or None where the plan has no space blocks"""
        if self.captures[0].space is None:
            return None
        h, w = self.plan.grid
        maps = [capture.space_map().unflatten(1, (h, w)).unflatten(3, (h, w)) for capture in self.captures]
        return self._mean(maps, (2, 4)).flatten(3).flatten(1, 2)

    def space_map(self) -> Tensor:
        """[B, g*g, g*g], row = query"""
        assert self.space is not None
        return self.space

    @property
    def dense(self) -> dict[str, Tensor]:
        """Layer id -> feature   [B, C, h, w]; a feature of the text [B, N, C] has nothing to mirror"""
        found = [capture.dense for capture in self.captures]
        return {
            name: self._mean([each[name] for each in found], (3,) if first.ndim == 4 else ())
            for name, first in found[0].items()
        }

    def _mean(self, values: list[Tensor], axes: tuple[int, ...]) -> Tensor:
        """The mean, after flipping the mirrored ones back along `axes`."""
        upright = [value.flip(axes) if flipped else value for value, flipped in zip(values, self.flipped, strict=True)]
        return sum(upright[1:], upright[0]) / len(upright)


Capture = Aggregator | Average
