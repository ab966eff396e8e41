"""Samples of a data set in, predictions out: what the evaluation asks of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from diffusion_feature import PromptCut
from numpy.typing import NDArray
from torch import Tensor

from goca.benchmark.counting import Prediction
from goca.datasets import Sample, SampleError
from goca.evaluation import Word
from goca.open import Answer, Query
from goca.open.finding import Finder
from goca.prompts import PromptAnnotation
from goca.requests import make_requests
from goca.segmentation_model import SegmentationModel
from goca.segmenter import Segmenter
from goca.variants.diffsegmentor import DiffSegmentor

SEGMENTERS: dict[str, type[SegmentationModel]] = {kind.method: kind for kind in (Segmenter, DiffSegmentor)}


def noise_id(sample: Sample, seed: int) -> str:
    """What a run with that seed makes the noise of a sample from."""
    return f"{sample.id}/{seed}" if seed else sample.id


@dataclass(frozen=True)
class Predictor:
    """A segmenter, where its prompts come from, and its noise: a `goca.evaluation.Segmentor`.

    prompts  sample -> annotation; raises SampleError where there is none
    noise    sample -> noise to add, or None: drawn, seeded by the image's id and `seed`
    told     whether the prompts name what is there by the ground truth; else predictions say what was looked for
    """

    segmenter: SegmentationModel
    prompts: Callable[[Sample], PromptAnnotation]
    noise: Callable[[Sample], NDArray[np.floating]] | None = None
    seed: int = 0
    told: bool = True

    def __call__(self, samples: Sequence[Sample]) -> list[Prediction | SampleError]:
        """Predictions in the order of the samples; those with something to look for share one forward."""
        found: list[Prediction | SampleError] = []
        wanted: dict[int, tuple[Sample, PromptAnnotation, Tensor | None]] = {}
        for number, sample in enumerate(samples):
            found.append(Prediction(None, (), words=self.words([])))  # nothing to look for: everything is background
            try:
                annotation = self.prompts(sample)
                noise = None if self.noise is None else torch.from_numpy(self.noise(sample))
                if annotation.class_ids or self.segmenter.protocol.empty_class != "zero":
                    wanted[number] = (sample, annotation, noise)
                else:
                    found[number] = Prediction(None, (), notes=sample.notes, words=self.words([]))
            except SampleError as error:
                found[number] = error
        for number, prediction in zip(wanted, self._predict(wanted.values())):
            found[number] = prediction
        return found

    def words(self, class_ids: Iterable[int], lost: Sequence[int] = ()) -> list[Word] | None:
        """The words that were looked for, without a presence; None where they were told to be there.

        lost  those whose words were cut off: nothing is taken for them
        """
        return None if self.told else [Word(class_id, None, class_id not in lost) for class_id in class_ids]

    def _predict(self, wanted: Iterable[tuple[Sample, PromptAnnotation, Tensor | None]]) -> Iterable[Prediction]:
        samples, annotations, noises = zip(*wanted) if wanted else ((), (), ())
        ids = [noise_id(sample, self.seed) for sample in samples]
        maps = self.segmenter.scores(make_requests([sample.image for sample in samples], annotations, noises, ids))
        cut: dict[str, str] = {}
        for sample, annotation in zip(samples, annotations):
            with warned() as messages:
                scores = next(maps)
            notes = notes_on(sample, messages, [annotation.caption], cut)
            classes, lost = annotation.class_ids, annotation.lost_classes()
            yield Prediction(scores, classes, lost, notes, self.words(classes, lost))


@dataclass(frozen=True)
class OpenPredictor:
    """A segmenter that looks for what each sample's query names (ask=open): a `goca.evaluation.Segmentor`.

    queries  sample -> what is looked for, None where there is nothing; raises SampleError
    noise, seed   as of `Predictor`
    """

    segmenter: SegmentationModel
    queries: Callable[[Sample], Query | None]
    noise: Callable[[Sample], NDArray[np.floating]] | None = None
    seed: int = 0

    @cached_property
    def finder(self) -> Finder:
        """One for the whole run: it writes a query's prompts once, and a vocabulary's are the same for all images."""
        return self.segmenter.finder()

    def __call__(self, samples: Sequence[Sample]) -> list[Prediction | SampleError]:
        """Predictions in the order of the samples; their prompts share forwards."""
        found: list[Prediction | SampleError] = []
        wanted: dict[int, tuple[Query, Tensor | None]] = {}
        for number, sample in enumerate(samples):
            found.append(Prediction(None, (), words=[]))
            try:
                query = self.queries(sample)
                noise = None if self.noise is None else torch.from_numpy(self.noise(sample))
                if query is not None:
                    wanted[number] = (query, noise)
            except SampleError as error:
                found[number] = error
        images = [samples[number].image for number in wanted]
        ids = [noise_id(samples[number], self.seed) for number in wanted]
        queries, noises = (list(each) for each in zip(*wanted.values())) if wanted else ([], [])
        answers, cut = self.finder.answers(images, queries, noises, ids), dict[str, str]()
        for number in wanted:
            with warned() as messages:
                answer = next(answers)
            found[number] = answered(answer, notes_on(samples[number], messages, answer.prompts, cut))
        return found


def answered(answer: Answer, notes: Sequence[str]) -> Prediction:
    """An answer as it is counted: the maps of the classes that are taken as present, and the background's."""
    triples = zip(answer.class_ids, answer.presence, answer.present, strict=True)
    words = [Word(*triple) for triple in triples]
    kept = [number for number, word in enumerate(words) if word.taken]
    scores = answer.scores[[*kept, -1]] if kept else None  # nothing is there: background, whatever the threshold
    return Prediction(scores, [words[number].class_id for number in kept], answer.lost, notes, words)


@contextmanager
def warned() -> Iterator[list[Warning]]:
    """What is warned of inside, in place of being shown."""
    messages: list[Warning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [each.message for each in caught if issubclass(each.category, UserWarning)]  # type: ignore[misc]


def notes_on(sample: Sample, messages: Sequence[Warning], prompts: Iterable[str], cut: dict[str, str]) -> list[str]:
    """What is to be kept of a sample: how its image was read, what was cut of its prompts, and other warnings.

    cut  prompt -> what was cut of it; a batch warns of all its prompts at its first image, so it is kept for the others
    """
    cut |= {each.prompt: str(each) for each in messages if isinstance(each, PromptCut)}
    own = [str(each) for each in messages if not isinstance(each, PromptCut)]
    return list(dict.fromkeys([*sample.notes, *(cut[prompt] for prompt in prompts if prompt in cut), *own]))
