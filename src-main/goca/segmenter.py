"""`Segmenter`: image + prompt -> `Segmentation`. The whole method, top to bottom."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from goca.method.aggregation import Aggregator, Plan
from goca.method.augmentation import augmentations, average_summaries
from goca.method.batch_budget import MemoryBudgetTooSmall as MemoryBudgetTooSmall
from goca.method.rescaling import rescale
from goca.method.summary import LayerSummary
from goca.open import NoClass as NoClass
from goca.open.finding import Finder
from goca.prompts import PromptAnnotation
from goca.prompts.positions import EmptyClass as EmptyClass
from goca.prompts.positions import PositionsBeyond as PositionsBeyond
from goca.prompts.positions import positions_in_text, warn_of_positions, zero_empty
from goca.prompts.reading import PromptError as PromptError
from goca.requests import ImageLike, Request, load_images
from goca.segmentation_model import SegmentationModel


class Segmenter(SegmentationModel):
    """GoCA on one model. `Segmenter.from_pretrained(pipeline, "sd15")(image, "cat, grass, wall").save("labels.png")`

    extractor  the model's layers
    config     settings of the method
    max_bytes  memory that the attention of one forward pass may hold; larger batches are split. None: no limit
    """

    method = "goca"
    finds_words = True

    def scores(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Refined class maps and the background's, for each request   [n, g, g]

        Requests share forward passes (see `max_bytes`); a batch runs when its first result is requested.
        """
        for request, (summary, number) in zip(requests, self.summaries(requests), strict=True):
            attention = summary.attention_map()[number]  # [g, g, N]  heads, then layers
            maps = self.rescale(attention, request.annotation)
            yield self.refine(maps, summary, number, request.image)

    @torch.no_grad()
    def score_maps(
        self, image: ImageLike, annotation: PromptAnnotation, noise: Tensor | None = None, image_id: str | None = None
    ) -> Tensor:
        """Class maps and then the background map, before refinement   [classes + 1, g, g] float32

        With keep_all_objects: one map per background entity instead of the background map.
        """
        return self.rescale(self.capture(image, annotation, noise, image_id).attention_map()[0], annotation)

    def capture(
        self,
        image: ImageLike,
        annotation: PromptAnnotation,
        noise: Tensor | None = None,
        image_id: str | None = None,
        head_rules: Sequence[str] = (),
        layer_rules: Sequence[str] = (),
    ) -> LayerSummary:
        """The attention of one image; `.attention_map(head_rule, layer_rule)` and `.space_map()` return its maps.

        head_rules, layer_rules  all combinations are computed in the same forward pass; empty: the config's
        """
        request = Request(image, annotation, noise, image_id)
        return self.run_forward_passes([request], self.plan(head_rules, layer_rules))

    def summaries(self, requests: Sequence[Request]) -> Iterator[tuple[LayerSummary, int]]:
        """For each request, the attention of its batch and its number in the batch.

        raises  MemoryBudgetTooSmall if a single image needs more than `max_bytes`
        """
        start = 0
        while start < len(requests):
            batch = requests[start : start + self.budget.next_batch(self._of_one_length(requests[start:]))]
            summary = self.run_forward_passes(batch)
            self.budget.observe(summary.peak_bytes, len(batch))
            yield from ((summary, number) for number in range(len(batch)))
            start += len(batch)

    def _of_one_length(self, requests: Sequence[Request]) -> int:
        """How many of the first prompts have the same number of text tokens: only those can share a forward pass."""
        lengths = (self.extractor.text_length(request.annotation.caption) for request in requests)
        first = next(lengths)
        return 1 + sum(1 for _ in itertools.takewhile(lambda length: length == first, lengths))

    def run_forward_passes(self, requests: Sequence[Request], plan: Plan | None = None) -> LayerSummary:
        """Run every forward pass of the config's test-time augmentation, and average their attention.

        plan  which maps are collected; None: those that the config needs
        """
        plan, loaded, passes = plan or self.plan(), load_images(requests), augmentations(self.config)
        summaries = [Aggregator(plan) for _ in passes]
        for augmentation, aggregator in zip(passes, summaries):
            self.forward(loaded, aggregator, augmentation)
        return average_summaries(passes, summaries)

    def rescale(self, attention: Tensor, annotation: PromptAnnotation, rule: str | None = None) -> Tensor:
        """Token maps [g, g, N] -> class maps and the background's   [classes + 1, g, g]

        The background map is the maximum over background entities, or 0 if there are none. rule: None: the config's.
        """
        length = attention.shape[-1]
        classes = [positions_in_text(own, length) for own in annotation.existent_objects.values()]
        backgrounds = [positions_in_text(own, length) for own in annotation.background_objects]
        content = positions_in_text(annotation.rescaling_token_id, length)
        rules = rule or self.config.rescale_method, self.config.token_method
        maps = rescale(attention, classes + backgrounds, content, *rules)
        warn_of_positions(annotation, length)
        if self.protocol.empty_class == "zero":
            maps = zero_empty(maps, classes + backgrounds, annotation)
        if self.config.keep_all_objects:
            return maps
        background = maps[len(classes) :].amax(0, keepdim=True) if backgrounds else maps.new_zeros(1, *maps.shape[1:])
        return torch.cat([maps[: len(classes)], background])

    def plan(self, head_rules: Sequence[str] = (), layer_rules: Sequence[str] = ()) -> Plan:
        """Which maps a forward pass collects under this config."""
        config = self.config
        return Plan(
            blocks=tuple(self.blocks),
            space_blocks=tuple(self.space_blocks),
            grid=config.grid,
            head_rules=tuple(head_rules) or (config.head_method,),
            layer_rules=tuple(layer_rules) or (config.layer_method,),
            reference=self.reference,
            first_channel=self.protocol.reference_channels == "first",
            normalised_rows=self.protocol.self_map_rows == "normalised",
            dense=tuple(self.dense.values()),
            rows=config.rows,
        )

    def finder(self) -> Finder:
        """Looks for classes that may be absent (`ask=open`)."""
        return Finder(self)
