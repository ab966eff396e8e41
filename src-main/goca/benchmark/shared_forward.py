"""One forward pass for several configurations: the score maps of each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusion_feature import FeatureExtractor, PromptCut
from diffusion_feature.tap import ConsumerGroup
from torch import Tensor

from goca.benchmark.benchmark import Benchmark
from goca.benchmark.origin import origin
from goca.benchmark.prediction import Case, Prediction
from goca.benchmark.predictor import Input, Noise, PromptedPredictor, recorded_warnings, request_of, usable
from goca.datasets import Dataset, Sample
from goca.method.aggregation import Aggregator, Plan
from goca.method.augmentation import augmentations, average_summaries
from goca.method.summary import LayerSummary
from goca.prompts import PromptAnnotation
from goca.refine.chain import nearest_preset
from goca.requests import Request, load_images
from goca.segmenter import Segmenter


@dataclass(frozen=True)
class View:
    """One run's view of the forward passes that it shares.

    segmenter   its configuration, on the shared weights
    plan        what a forward pass collects for it
    prompts     sample -> annotation; raises SampleError
    scores_key  views with the same key have the same scores
    """

    segmenter: Segmenter
    plan: Plan
    prompts: Callable[[Sample], PromptAnnotation]
    scores_key: str


class SharedForward(PromptedPredictor[PromptAnnotation]):
    """A predictor for several runs whose forward passes are the same (goca.benchmark.sweep.forward_key).

    Cases of one image with the same caption share a forward pass.
    origin  what each run folder records about where its counts come from
    """

    def __init__(self, runs: Sequence[Benchmark], dataset: Dataset, extractor: FeatureExtractor):
        self.noise = Noise(runs[0].noise(), runs[0].seed)
        sources: dict[str, LastPrompt] = {}
        self.views = [view_of(run, dataset, extractor, sources) for run in runs]
        self.origin = origin(self.views[0].segmenter)

    def prompt(self, case: Case) -> PromptAnnotation | None:
        view = self.views[case.run]
        return usable(view.prompts(case.sample), view.segmenter)

    @torch.no_grad()
    def predict(self, inputs: Sequence[Input[PromptAnnotation]]) -> list[Prediction]:
        by_request: dict[tuple[int, str], list[int]] = {}
        for number, each in enumerate(inputs):
            by_request.setdefault((id(each.sample), each.prompt.caption), []).append(number)
        predictions: dict[int, Prediction] = {}
        for numbers in by_request.values():
            predictions |= zip(numbers, self._predict([inputs[number] for number in numbers]), strict=True)
        return [predictions[number] for number in range(len(inputs))]

    def _predict(self, inputs: Sequence[Input[PromptAnnotation]]) -> Iterator[Prediction]:
        """Predictions of one image for runs with the same prompt, from one forward pass."""
        views, sample = [self.views[each.case.run] for each in inputs], inputs[0].sample
        with recorded_warnings() as messages:
            shared = SharedPass(views[0].segmenter, request_of(inputs[0]), [view.plan for view in views])
        truncated = [str(each) for each in messages if isinstance(each, PromptCut)]
        scored: dict[str, tuple[Tensor, list[str]]] = {}
        for view, annotation in zip(views, (each.prompt for each in inputs)):
            if view.scores_key not in scored:
                with recorded_warnings() as messages:
                    rescaled = view.segmenter.rescale(shared.attention_map(view.plan), annotation)
                    scores = view.segmenter.refine(rescaled, shared.summary(view.plan), 0, sample.image)
                notes = dict.fromkeys([*sample.notes, *truncated, *map(str, messages)])
                scored[view.scores_key] = scores, list(notes)
            scores, own = scored[view.scores_key]
            yield Prediction(scores, annotation.class_ids, annotation.lost_classes(), own)


def view_of(run: Benchmark, dataset: Dataset, extractor: FeatureExtractor, sources: dict[str, LastPrompt]) -> View:
    """One run's view. sources: those of the views so far, by what their prompts depend on; another one is added."""
    segmenter = Segmenter(extractor, run.model)
    switches = [run.protocol.token_spans, run.protocol.caption_grammar]
    key = json.dumps([*switches, run.dataset.add_background, run.dataset.add_missing])
    if key not in sources:
        source = run.prompts(dataset)
        assert source is not None, "runs without prompts share no forward passes"
        sources[key] = LastPrompt(source.annotated(run.annotator(dataset, extractor.parts)))
    return View(segmenter, segmenter.plan(), sources[key], scores_key(segmenter, key))


class LastPrompt:
    """A source of prompts for several runs: the annotation of the last sample is kept for the next run."""

    def __init__(self, source: Callable[[Sample], PromptAnnotation]):
        self.source = source
        self._last: tuple[Sample, PromptAnnotation] | None = None

    def __call__(self, sample: Sample) -> PromptAnnotation:
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self.source(sample)
        return self._last[1]


class SharedPass:
    """The attention of one image's forward pass (one per augmentation), collected for several plans."""

    def __init__(self, segmenter: Segmenter, request: Request, plans: Sequence[Plan]):
        passes, merged, requests = augmentations(segmenter.config), merge_plans(plans), load_images([request])
        aggregators = [[Aggregator(plan) for plan in merged] for _ in passes]
        for augmentation, own in zip(passes, aggregators):
            segmenter.forward(requests, ConsumerGroup(own), augmentation)
        of_plans = zip(merged, zip(*aggregators))
        self._summaries = {without_rules(plan): average_summaries(passes, own) for plan, own in of_plans}
        self._maps: dict[tuple[Plan, str, str], Tensor] = {}

    def summary(self, plan: Plan) -> LayerSummary:
        """The summary that serves a plan; it may hold rules of others too."""
        return self._summaries[without_rules(plan)]

    def attention_map(self, plan: Plan) -> Tensor:
        """Token maps under the plan's first head rule and layer rule   [g, g, N]; plans that agree share them."""
        key = without_rules(plan), plan.head_rules[0], plan.layer_rules[0]
        if key not in self._maps:
            self._maps[key] = self.summary(plan).attention_map(*key[1:])[0]
        return self._maps[key]


def without_rules(plan: Plan) -> Plan:
    """A plan without its head and layer rules: plans that are equal without them are served by one aggregator."""
    return dataclasses.replace(plan, head_rules=(), layer_rules=())


def merge_plans(plans: Sequence[Plan]) -> list[Plan]:
    """As few plans as possible, which collect what all of these do."""
    found: dict[Plan, list[Plan]] = {}
    for plan in plans:
        found.setdefault(without_rules(plan), []).append(plan)
    return [
        dataclasses.replace(
            plan,
            head_rules=tuple(dict.fromkeys(rule for each in own for rule in each.head_rules)),
            layer_rules=tuple(dict.fromkeys(rule for each in own for rule in each.layer_rules)),
        )
        for plan, own in found.items()
    ]


def scores_key(segmenter: Segmenter, source: str) -> str:
    """Everything that the scores of an image depend on: the config without what decides how they are counted."""
    config = segmenter.config.to_dict()
    switches = {name: value for name, value in config.pop("protocol").items() if name not in ("void", "absent_classes")}
    return json.dumps([config, switches, nearest_preset(segmenter.config), source], sort_keys=True)
