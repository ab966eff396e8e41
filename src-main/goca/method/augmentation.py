"""Test-time augmentation: attention averaged over mirrored images, extra noise samples and extra timesteps.

The token maps before rescaling, the space map and dense features are averaged; those of a mirrored image are first
mirrored back. Without augmentation, the result equals that of the single forward pass, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from diffusion_feature.images import read_image
from PIL import ImageOps
from torch import Tensor

from goca.method.aggregation import Aggregator, Plan
from goca.method.summary import LayerSummary

if TYPE_CHECKING:
    from goca.config import SegmenterConfig


@dataclass(frozen=True)
class Augmentation:
    """One forward pass over an image.

    t             timestep
    noise_sample  number of the noise sample; 0 is the image's own
    mirrored      whether the image is mirrored left to right
    """

    t: int
    noise_sample: int = 0
    mirrored: bool = False

    def image(self, image: Any) -> Any:
        """The image that this pass segments; anything that `read_image` takes."""
        return ImageOps.mirror(read_image(image).stored) if self.mirrored else image

    def seed(self, seed: int) -> int:
        """The seed of this pass's noise: the image's own for sample 0, else a hash of that and the sample's number."""
        if self.noise_sample == 0:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed}/{self.noise_sample}".encode()).digest()[:7], "big")


def augmentations(config: SegmenterConfig) -> tuple[Augmentation, ...]:
    """Every combination of the config's timesteps, draws and flips; the unaugmented pass comes first."""
    passes = product((config.t, *config.timesteps), range(config.draws), (False, True)[: 1 + config.flips])
    return tuple(Augmentation(*each) for each in passes)


def average_summaries(passes: Sequence[Augmentation], summaries: Sequence[Aggregator]) -> LayerSummary:
    """One summary of several passes; a single pass that is not mirrored is returned unchanged."""
    if len(summaries) == 1 and not passes[0].mirrored:
        return summaries[0]
    return AugmentationAverage(summaries, [each.mirrored for each in passes])


@dataclass
class AugmentationAverage:
    """The mean of several passes' summaries (an `AttentionSummary`).

    summaries   one per pass
    mirrored    for each pass, whether its images were mirrored
    """

    summaries: Sequence[Aggregator]
    mirrored: Sequence[bool]

    @property
    def plan(self) -> Plan:
        return self.summaries[0].plan

    @property
    def peak_bytes(self) -> int:
        return sum(summary.peak_bytes for summary in self.summaries)

    def attention_map(self, head_rule: str | None = None, layer_rule: str | None = None) -> Tensor:
        """[B, g, g, N], sum 1 over tokens"""
        return self._mean([summary.attention_map(head_rule, layer_rule) for summary in self.summaries], (2,))

    def block_map(self, block: str, head_rule: str | None = None) -> Tensor:
        """[B, g, g, N]"""
        return self._mean([summary.block_map(block, head_rule) for summary in self.summaries], (2,))

    def layer_weights(self, rule: str) -> Tensor:
        """[B, M]"""
        return self._mean([summary.layer_weights(rule) for summary in self.summaries], ())

    def space_map(self) -> Tensor | None:
        """[B, g*g, g*g], row = query; None where the plan has no space blocks"""
        return self._space

    @cached_property
    def _space(self) -> Tensor | None:
        h, w = self.plan.grid
        maps = [space for summary in self.summaries if (space := summary.space_map()) is not None]
        if not maps:
            return None
        unfolded = [space.unflatten(1, (h, w)).unflatten(3, (h, w)) for space in maps]  # [B, g, g, g, g]
        return self._mean(unfolded, (2, 4)).flatten(3).flatten(1, 2)

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """Layer id -> feature   [B, C, h, w]; a feature of the text [B, N, C] is not mirrored"""
        features = [summary.dense for summary in self.summaries]
        return {
            name: self._mean([each[name] for each in features], (3,) if first.ndim == 4 else ())
            for name, first in features[0].items()
        }

    def _mean(self, values: list[Tensor], axes: tuple[int, ...]) -> Tensor:
        """The mean, after values of mirrored images are mirrored back along `axes`."""
        upright = [value.flip(axes) if back else value for value, back in zip(values, self.mirrored, strict=True)]
        return sum(upright[1:], upright[0]) / len(upright)
