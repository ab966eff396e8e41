"""The method as plain eager code, which keeps every head's map and compares every layer at full size.

The streaming implementation is measured against it and must agree with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusion_feature import Attention
from goca.method.aggregation import Plan
from goca.method.resizing import Grid
from torch import Tensor


@dataclass
class Kept:
    """One layer: a map per head [S, K], and the inputs of head weighting."""

    maps: list[Tensor]
    values: list[Tensor]
    out_proj: Tensor | None
    grid: Grid


@dataclass
class EverythingKept:
    """A consumer (see diffusion_feature.tap) that keeps all maps of one image in the model's precision."""

    plan: Plan
    cross: dict[str, Kept] = field(default_factory=dict)
    selves: dict[str, Kept] = field(default_factory=dict)
    reference: Tensor | None = None

    @property
    def features(self) -> tuple[str, ...]:
        return (self.plan.reference,)

    def feature(self, layer: str, feature: Tensor) -> None:
        self.reference = feature[0].float()

    def attention(self, a: Attention) -> None:
        scale = a.query.shape[-1] ** -0.5 if a.scale is None else a.scale
        assert a.value is not None
        maps = []
        for head in range(a.heads):
            logits = a.query[0, head, a.image_queries].float() @ a.key[0, head].float().T * scale
            maps.append(logits.softmax(-1).to(a.query.dtype))
        weighed = a.layer.weighed and self.plan.head_rules[0] != "average"
        for keys, kept in ((a.text_keys, self.cross), (a.image_keys, self.selves)):
            if keys is not None:
                parts = [each[:, keys].clone() for each in maps] if a.text_keys and a.image_keys else maps
                own = keys if a.image_keys is None else a.image_keys
                values = [a.value[0, head, own] for head in range(a.heads)]
                kept[a.layer.block] = Kept(parts, values, a.layer.out_proj() if weighed else None, a.grid)

    @property
    def bytes(self) -> int:
        """The memory of the maps."""
        return sum(each.nbytes for kept in (*self.cross.values(), *self.selves.values()) for each in kept.maps)

    def aggregate(self) -> tuple[Tensor, Tensor]:
        """Token maps [g, g, N] and the space map [g*g, g*g]."""
        weights = torch.stack([self.similarity(block) for block in self.plan.blocks]).clamp(min=0)
        total = sum(weight * self.on_grid(block) for block, weight in zip(self.plan.blocks, weights / weights.sum()))
        total = total.clamp(min=0)  # type: ignore[union-attr]
        space = [
            resized(head_mean(self.selves[block]), self.selves[block].grid, self.plan.grid)
            for block in self.plan.space_blocks
        ]
        return (total / total.sum(0)).permute(1, 2, 0), sum(space) / len(space)  # type: ignore[return-value]

    def on_grid(self, block: str) -> Tensor:
        """A layer's head-aggregated map   [N, g, g]"""
        kept = self.cross[block]
        maps = head_weighed(kept).T.unflatten(1, kept.grid)[None]
        return F.interpolate(maps, size=self.plan.grid, mode="bilinear", align_corners=False)[0]

    def similarity(self, block: str) -> Tensor:
        assert self.reference is not None
        features = self.reference.flatten(1).T
        affinity = (features @ features.T / features.shape[1] ** 0.5).softmax(-1)
        grid = (self.reference.shape[1], self.reference.shape[2])
        return (affinity * resized(head_mean(self.selves[block]), self.selves[block].grid, grid)).sum()


def head_mean(kept: Kept) -> Tensor:
    return torch.stack(kept.maps).float().mean(0)


def head_weighed(kept: Kept) -> Tensor:
    """ "dot-product w/o clamp", or the average if head weighting is not supported   [S, N]"""
    if kept.out_proj is None:
        return head_mean(kept)
    width = kept.values[0].shape[1]
    outputs = [
        A.float() @ V.float() @ kept.out_proj[:, head * width : (head + 1) * width].T.float()
        for head, (A, V) in enumerate(zip(kept.maps, kept.values))
    ]  # o_h [S, D]
    total = torch.stack(outputs).sum(0)
    dots = torch.stack([(output * total).sum(-1) for output in outputs])  # [H, S]
    return sum(w[:, None] * A.float() for w, A in zip(dots / dots.sum(0), kept.maps))  # type: ignore[return-value]


def resized(maps: Tensor, source: Grid, target: Grid) -> Tensor:
    """A self map on another grid, keys bilinearly, queries by nearest neighbour   [S, S] -> [R, R]"""
    if source == target:
        return maps
    keys = F.interpolate(maps.unflatten(1, source)[None], size=target, mode="bilinear", align_corners=False)[0]
    queries = F.interpolate(keys.flatten(1).T.unflatten(1, source)[None], size=target, mode="nearest")[0]
    rows = queries.flatten(1).T
    return rows / rows.sum(-1, keepdim=True)
