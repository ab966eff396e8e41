"""Answer queries: write prompts, run one forward pass for all of them, judge presence, compute scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goca.open.denoising import PROBES, Denoising, word_errors
from goca.open.evidence import PromptMaps, gather
from goca.open.presence import DEFAULT, PRESENCE_RULES, Judgement
from goca.open.prompts import Writer
from goca.open.query import Query
from goca.open.rest import REST_RULES, after_competing, opposed
from goca.open.vocabulary import background_words
from goca.prompts import PromptAnnotation
from goca.requests import ImageLike, Request
from goca.segmentation import BACKGROUND, Segmentation, size_and_image

if TYPE_CHECKING:
    from goca.method.summary import LayerSummary
    from goca.segmenter import Segmenter


@dataclass(frozen=True)
class Answer:
    """The result of a query for one image.

    scores      refined class maps in the query's order, then the background's   [K + 1, g, g]; the label is the
                argmax without a threshold; the map of an absent class is 0 everywhere
    class_ids   ids of the K class maps
    presence    the probability that each class is in the image, 0..1
    present     whether each class is judged present
    lost        classes whose names were truncated entirely
    prompts     the prompts
    raw         scores of presence before calibration
    """

    scores: Tensor
    class_ids: list[int]
    presence: tuple[float, ...]
    present: tuple[bool, ...]
    lost: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    raw: tuple[float, ...] = ()

    def segmentation(self, query: Query, image: ImageLike) -> Segmentation:
        """The answer as a segmentation of its image, with class names."""
        ids, names = [*self.class_ids, BACKGROUND], [*query.names().values(), "background"]
        return Segmentation(self.scores, ids, names, *size_and_image(image), self.presence, self.present)


class Finder:
    """Answers queries with a segmenter; `Segmenter.look_for` calls it."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter, self.config = segmenter, segmenter.config
        self._prompts: dict[Query, list[PromptAnnotation]] = {}

    @cached_property
    def writer(self) -> Writer:
        extractor = self.segmenter.extractor
        background = background_words(self.config.background_words)
        return Writer(extractor.backbone.tokenizers(extractor.parts), background, self.config.separator)

    @cached_property
    def options(self) -> Denoising:
        """Options of the probe."""
        return Denoising(**self.config.denoising)

    def prompts(self, query: Query) -> list[PromptAnnotation]:
        """The query's prompts, cached."""
        if query not in self._prompts:
            if len(self._prompts) >= 100:
                self._prompts.clear()
            self._prompts[query] = self.writer.prompts(query)
        return self._prompts[query]

    def answers(
        self,
        images: Sequence[ImageLike],
        queries: Sequence[Query],
        noises: Sequence[Tensor | None] | None = None,
        image_ids: Sequence[str | None] | None = None,
    ) -> Iterator[Answer]:
        """An answer per image; a probe of presence, if configured, runs first and leaves only present classes."""
        judged = self.judgements(images, queries, image_ids)
        prompts = [
            self.prompts(query if each is None else present(query, each)) for query, each in zip(queries, judged)
        ]
        noises = [None] * len(images) if noises is None else noises
        image_ids = [None] * len(images) if image_ids is None else image_ids
        requests = [
            Request(image, annotation, noise, image_id, group)
            for group, (image, own, noise, image_id) in enumerate(zip(images, prompts, noises, image_ids, strict=True))
            for annotation in own
        ]
        maps = self.prompt_maps(self.segmenter.summaries(requests))
        for image, query, own, judgement in zip(images, queries, prompts, judged, strict=True):
            seen = [next(maps) for _ in own]
            yield self.answer(image, query, own, [each for *_, each in seen], *seen[0][:2], judgement)

    def judgements(
        self, images: Sequence[ImageLike], queries: Sequence[Query], image_ids: Sequence[str | None] | None = None
    ) -> list[Judgement | None]:
        """Presence by the config's probe; None without a probe, or for a single word with nothing to compare."""
        if self.config.presence not in PROBES:
            return [None] * len(queries)
        words = [self.writer.single(query) for query in queries]
        numbers = [number for number, own in enumerate(words) if len(own) > 1]
        ids = [None if image_ids is None else image_ids[number] for number in numbers]
        compared = [words[number] for number in numbers]
        found: list[Judgement | None] = [None] * len(queries)
        if numbers:
            errors = word_errors(self.segmenter, [images[number] for number in numbers], compared, ids, self.options)
            for number, own in zip(numbers, errors):
                found[number] = self.judgement(own, queries[number])
        return found

    def judgement(self, errors: Tensor, query: Query) -> Judgement:
        """Presence from errors [W, T, h, w]: of the query's classes, then of the background words"""
        options = self.options
        gain = PROBES[self.config.presence](errors, options.blur)[: len(query.classes)]
        return Judgement.of(gain.exp(), options.slope, options.midpoint, options.least)

    def prompt_maps(
        self, summaries: Iterable[tuple[LayerSummary, int]], head_rule: str | None = None, layer_rule: str | None = None
    ) -> Iterator[tuple[LayerSummary, int, PromptMaps]]:
        """Token maps of each prompt, computed once per forward pass; rules as in `attention_map`."""
        held: tuple[LayerSummary, Tensor, Tensor | None] | None = None
        block = next((each for each in self.segmenter.blocks if self.segmenter.reference.startswith(f"{each}-")), None)
        for summary, number in summaries:
            if held is None or held[0] is not summary:
                own = None if block is None else summary.block_map(block, head_rule)
                held = summary, summary.attention_map(head_rule, layer_rule), own
            yield summary, number, PromptMaps(held[1][number], None if held[2] is None else held[2][number])

    @torch.no_grad()
    def answer(
        self,
        image: ImageLike,
        query: Query,
        prompts: Sequence[PromptAnnotation],
        maps: Sequence[PromptMaps],
        summary: LayerSummary,
        number: int,
        judgement: Judgement | None = None,
    ) -> Answer:
        """Scores and presence from the maps of each prompt; scores are refined with the space map of the first.

        prompts    of all classes of the query, or of some; the others score 0
        judgement  presence of the query's classes, if known; None: computed by the config's rule
        """
        config, rule = self.config, REST_RULES[self.config.rest]
        space = summary.space_map()
        found = gather(maps, prompts, None if space is None else space[number], config.token_method)
        if judgement is None:
            raw = PRESENCE_RULES.get(config.presence, PRESENCE_RULES[DEFAULT])(found)
            judgement = Judgement.of(raw, **config.calibration, least=config.least_presence)
        before, after = rule.before(found), rule.after
        if any(step.refinement.competes for step in config.steps) and not before[-1].any():
            before, after = opposed(before), after_competing
        refined = self.segmenter.refine(before, summary, number, image)
        scores = after(refined, before, found, config.floor, config.half_share)
        asked = [query.class_ids.index(class_id) for prompt in prompts for class_id in prompt.existent_objects]
        words = scores.new_zeros(len(query.classes), *scores.shape[1:])
        words[asked] = scores[:-1]
        words = words * judgement.present.to(words)[:, None, None]
        lost = [class_id for prompt in prompts for class_id in prompt.lost_classes()]
        return Answer(
            torch.cat([words, scores[-1:]]),
            query.class_ids,
            tuple(judgement.probability.tolist()),
            tuple(judgement.present.tolist()),
            tuple(lost),
            tuple(prompt.caption for prompt in prompts),
            tuple(judgement.raw.tolist()),
        )


def present(query: Query, judgement: Judgement) -> Query:
    """The query without absent classes; if all are absent, with the likeliest one, whose map becomes 0."""
    kept = judgement.present.nonzero().flatten().tolist() or [int(judgement.raw.argmax())]
    return query.only([query.class_ids[number] for number in kept])
