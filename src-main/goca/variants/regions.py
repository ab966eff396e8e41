"""Segmentation without a prompt: self-attention maps are merged into regions (after DiffSeg)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from goca.config import ConfigError
from goca.method.aggregation import Plan
from goca.prompts import PromptAnnotation
from goca.refine import merge_proposals
from goca.requests import ImageLike, make_requests
from goca.segmentation import Segmentation, size_and_image
from goca.segmenter import Segmenter
from goca.variants.merging import Merging


class RegionFinder(Segmenter):
    """Regions from self-attention. `RegionFinder.from_pretrained(None, "mini-sd").regions(["photo.jpg"])`"""

    def plan(self, head_rules: Sequence[str] = (), layer_rules: Sequence[str] = ()) -> Plan:
        """Collects only the space map; head and layer rules are ignored."""
        return dataclasses.replace(super().plan(), blocks=(), head_rules=(), layer_rules=(), dense=())

    @torch.no_grad()
    def regions(
        self,
        images: Sequence[ImageLike],
        merging: Merging = Merging(),  # noqa: B008 - frozen
        noise: Sequence[Tensor | None] | None = None,
        image_ids: Sequence[str | None] | None = None,
    ) -> list[Tensor]:
        """Merge each image's self-attention maps. The prompt is empty.

        images             as for `Segmenter.__call__`, always a sequence
        merging            threshold, stride and rounds of `goca.refine.merge_proposals`
        noise, image_ids   one per image; None: as in `Segmenter.__call__`
        returns            for each image [P, g, g]; argmax over P gives regions
        errors             ConfigError if the config names no self_layers
        """
        if not self.space_blocks:
            raise ConfigError("regions are merged from self-attention; name its maps in self_layers")
        requests = make_requests(images, [PromptAnnotation("")] * len(images), noise, image_ids)
        regions = []
        for summary, number in self.summaries(requests):
            space = summary.space_map()
            assert space is not None  # self_layers is checked above
            regions.append(merge_proposals(space[number], self.config.grid, **dataclasses.asdict(merging)))
        return regions

    def segment(
        self,
        image: ImageLike,
        merging: Merging = Merging(),  # noqa: B008 - frozen
        noise: Tensor | None = None,
        image_id: str | None = None,
    ) -> Segmentation:
        """An image's regions as a segmentation: the classes "region 1", "region 2", ..., the largest first.

        There is no background. Arguments and errors are those of `regions`, for one image.
        """
        (maps,) = self.regions([image], merging, [noise], [image_id])
        areas = maps.argmax(0).flatten().bincount(minlength=len(maps))
        maps = maps[areas.argsort(descending=True, stable=True)][: int((areas > 0).sum())]
        ids = list(range(1, len(maps) + 1))
        return Segmentation(maps, ids, [f"region {number}" for number in ids], *size_and_image(image))
