"""One forward for several configurations: what each of them says of a picture."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from diffusion_feature import Attention, FeatureExtractor, PromptCut
from diffusion_feature.tap import Consumer
from torch import Tensor

from goca.benchmark.benchmark import Benchmark
from goca.benchmark.counting import Prediction
from goca.benchmark.inputs import AnnotationFile, Captions, NoiseFile
from goca.benchmark.origin import origin
from goca.benchmark.predictor import noise_id
from goca.datasets import Dataset, Sample, SampleError
from goca.method.aggregation import Aggregator, Plan
from goca.method.augmentation import augmentations, average_summaries
from goca.method.summary import LayerSummary
from goca.prompts import PromptAnnotation
from goca.refine.chain import nearest_preset
from goca.requests import Request, load_images
from goca.segmenter import Segmenter


class Together:
    """Several consumers of one forward."""

    def __init__(self, consumers: Sequence[Consumer]):
        self.consumers = consumers
        self.features = tuple(dict.fromkeys(name for consumer in consumers for name in consumer.features))

    def attention(self, attention: Attention) -> None:
        for consumer in self.consumers:
            consumer.attention(attention)

    def feature(self, layer: str, feature: Tensor) -> None:
        for consumer in self.consumers:
            if layer in consumer.features:
                consumer.feature(layer, feature)


class Shared:
    """What runs ask of one model whose forwards are the same (goca.benchmark.sweep.forward_key).

    origin   what a run's folder says of where its counts come from
    """

    def __init__(self, runs: Sequence[Benchmark], dataset: Dataset, extractor: FeatureExtractor):
        self.dataset, self.seed, file = dataset, runs[0].seed, runs[0].noise_file
        self.segmenters = [Segmenter(extractor, run.model) for run in runs]
        self.noise = NoiseFile(file) if file else None
        self.sources: dict[str, AnnotationFile | Captions] = {}
        self.reads = [self._source(run, extractor) for run in runs]
        self.plans = [segmenter.plan() for segmenter in self.segmenters]
        self.scored = [scores_key(segmenter, read) for segmenter, read in zip(self.segmenters, self.reads)]
        self.origin = origin(self.segmenters[0])

    def _source(self, benchmark: Benchmark, extractor: FeatureExtractor) -> str:
        """Where a run's prompts come from, by a key that runs share whose prompts are the same."""
        switches = [benchmark.protocol.token_spans, benchmark.protocol.caption_grammar]
        key = json.dumps([*switches, benchmark.dataset.add_background, benchmark.dataset.add_missing])
        if key not in self.sources:
            self.sources[key] = source = benchmark.prompts(self.dataset)  # type: ignore[assignment]
            if isinstance(source, Captions):
                source.annotate = benchmark.annotator(self.dataset, extractor.parts)
        return key

    @torch.no_grad()
    def predict(self, sample: Sample, wanted: Sequence[int]) -> dict[int, Prediction | SampleError]:
        """What each of the wanted runs says of a sample."""
        found: dict[int, Prediction | SampleError] = {}
        by_caption: dict[str, list[tuple[int, PromptAnnotation]]] = {}
        annotated = {key: attempt(self.sources[key], sample) for key in {self.reads[number] for number in wanted}}
        noise = None if self.noise is None else attempt(self.noise, sample)
        for number in wanted:
            annotation = annotated[self.reads[number]]
            if isinstance(annotation, SampleError):
                found[number] = annotation
            elif isinstance(noise, SampleError):
                found[number] = noise
            elif annotation.class_ids or self.segmenters[number].protocol.empty_class != "zero":
                by_caption.setdefault(annotation.caption, []).append((number, annotation))
            else:
                found[number] = Prediction(None, (), notes=sample.notes)  # nothing to look for
        for asked in by_caption.values():
            found |= self._predict(sample, noise, asked)
        return found

    def _predict(
        self, sample: Sample, noise: Any, asked: Sequence[tuple[int, PromptAnnotation]]
    ) -> Iterator[tuple[int, Prediction]]:
        """Those that have the same prompt, from one forward."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attention, captures = self._observe(sample, noise, asked)
        cut = [str(each.message) for each in caught if isinstance(each.message, PromptCut)]
        scored: dict[str, tuple[Tensor, list[str]]] = {}
        for number, annotation in asked:
            segmenter, plan, key = self.segmenters[number], self.plans[number], self.scored[number]
            if key not in scored:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    maps = attention(bare(plan), plan.head_rules[0], plan.layer_rules[0])
                    rescaled = segmenter.rescale(maps, annotation)
                    scores = segmenter.refine(rescaled, captures[bare(plan)], 0, sample.image)
                own = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
                scored[key] = scores, list(dict.fromkeys([*sample.notes, *cut, *own]))
            scores, notes = scored[key]
            yield number, Prediction(scores, annotation.class_ids, annotation.lost_classes(), notes)

    def _observe(
        self, sample: Sample, noise: Any, asked: Sequence[tuple[int, PromptAnnotation]]
    ) -> tuple[Callable[[Plan, str, str], Tensor], Mapping[Plan, LayerSummary]]:
        """One forward pass (per augmentation) for all: a plan's token maps under two rules, and its summary."""
        segmenter, annotation = self.segmenters[asked[0][0]], asked[0][1]
        plans = united([self.plans[number] for number, _ in asked])
        given = None if noise is None else torch.from_numpy(noise)
        requests = load_images([Request(sample.image, annotation, given, noise_id(sample, self.seed))])
        passes = augmentations(segmenter.config)
        parts = [[Aggregator(plan) for plan in plans] for _ in passes]
        for augmentation, aggregators in zip(passes, parts):
            segmenter.forward(requests, Together(aggregators), augmentation)
        captures = {bare(plan): average_summaries(passes, own) for plan, own in zip(plans, zip(*parts))}
        return cache(lambda plan, head, layer: captures[plan].attention_map(head, layer)[0]), captures


def attempt(source: Callable[[Sample], Any], sample: Sample) -> Any:
    """What the source says of a sample, or why it says nothing."""
    try:
        return source(sample)
    except SampleError as error:
        return error


def bare(plan: Plan) -> Plan:
    """A plan without its rules: those with the same one are served by one aggregator."""
    return dataclasses.replace(plan, head_rules=(), layer_rules=())


def united(plans: Sequence[Plan]) -> list[Plan]:
    """As few plans, with all their rules."""
    found: dict[Plan, list[Plan]] = {}
    for plan in plans:
        found.setdefault(bare(plan), []).append(plan)
    return [
        dataclasses.replace(
            plan,
            head_rules=tuple(dict.fromkeys(rule for each in own for rule in each.head_rules)),
            layer_rules=tuple(dict.fromkeys(rule for each in own for rule in each.layer_rules)),
        )
        for plan, own in found.items()
    ]


def scores_key(segmenter: Segmenter, source: str) -> str:
    """What the scores of a picture depend on: all of the config but how they are counted."""
    config = segmenter.config.to_dict()
    switches = {name: value for name, value in config.pop("protocol").items() if name not in ("void", "absent_classes")}
    return json.dumps([config, switches, nearest_preset(segmenter.config), source], sort_keys=True)
