"""How a model turns images into score maps: one strategy per kind of prompt.

`CompletePredictor`  the prompt names everything in the image (ask=complete)
`OpenPredictor`      the image may lack some of the classes (ask=open)
`RegionPredictor`    no prompt at all (task=unsupervised)
`SharedForward`      several configurations on one forward pass (goca.benchmark.shared_forward)
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from diffusion_feature import PromptCut
from torch import Tensor

from goca.benchmark.inputs import NoiseFile
from goca.benchmark.prediction import Case, Outcome, Prediction
from goca.datasets import Sample, SampleError
from goca.evaluation import Word
from goca.open import Answer, Query
from goca.open.finding import Finder
from goca.prompts import PromptAnnotation
from goca.requests import Request
from goca.segmentation_model import SegmentationModel
from goca.segmenter import Segmenter
from goca.variants.diffsegmentor import DiffSegmentor
from goca.variants.merging import Merging
from goca.variants.regions import RegionFinder

SEGMENTERS: dict[str, type[SegmentationModel]] = {kind.method: kind for kind in (Segmenter, DiffSegmentor)}
Prompt = TypeVar("Prompt")


@dataclass(frozen=True)
class Noise:
    """The noise of a run's images: from a file, or drawn with a seed from the image's id.

    file  sample -> array; None: drawn
    seed  the run's seed, appended to the image's id unless it is 0
    """

    file: NoiseFile | None = None
    seed: int = 0

    def of(self, sample: Sample) -> Tensor | None:
        """The file's noise for a sample; None without a file. Raises SampleError if the file has none for it."""
        return None if self.file is None else torch.from_numpy(self.file(sample))

    def image_id(self, sample: Sample) -> str:
        """The text that determines the seed of a sample's noise."""
        return f"{sample.id}/{self.seed}" if self.seed else sample.id


@dataclass(frozen=True)
class Input(Generic[Prompt]):
    """A case with its prompt, its noise, and the id that determines the seed of other noise."""

    case: Case
    prompt: Prompt
    noise: Tensor | None
    image_id: str

    @property
    def sample(self) -> Sample:
        return self.case.sample


class PromptedPredictor(ABC, Generic[Prompt]):
    """A `Predictor` that finds the prompt of each case, and predicts all cases with a prompt together.

    noise          the noise of all images
    words_if_none  `Prediction.words` of a case without a prompt
    """

    noise: Noise
    words_if_none: Sequence[Word] | None = None

    def __call__(self, cases: Sequence[Case]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        inputs: dict[int, Input[Prompt]] = {}
        for number, case in enumerate(cases):
            try:
                prompt, noise = self.prompt(case), self.noise.of(case.sample)
            except SampleError as error:
                outcomes[number] = error
            else:
                if prompt is None:
                    outcomes[number] = Prediction(None, (), notes=case.sample.notes, words=self.words_if_none)
                else:
                    inputs[number] = Input(case, prompt, noise, self.noise.image_id(case.sample))
        if inputs:
            outcomes |= zip(inputs, self.predict(list(inputs.values())), strict=True)
        return [outcomes[number] for number in range(len(cases))]

    @abstractmethod
    def prompt(self, case: Case) -> Prompt | None:
        """The prompt of a case; None: nothing is looked for, and all pixels are background. Raises SampleError."""

    @abstractmethod
    def predict(self, inputs: Sequence[Input[Prompt]]) -> Iterable[Prediction]:
        """One prediction per input, in order."""


class CompletePredictor(PromptedPredictor[PromptAnnotation]):
    """The prompt names everything in the image (ask=complete).

    prompts        sample -> annotation; raises SampleError if there is none
    reports_words  whether predictions list the classes that were looked for, if these may differ from the label's
    """

    def __init__(
        self,
        segmenter: SegmentationModel,
        prompts: Callable[[Sample], PromptAnnotation],
        noise: Noise = Noise(),
        reports_words: bool = False,
    ) -> None:
        self.segmenter, self.prompts, self.noise, self.reports_words = segmenter, prompts, noise, reports_words
        self.words_if_none = self.words([])

    def prompt(self, case: Case) -> PromptAnnotation | None:
        return usable(self.prompts(case.sample), self.segmenter)

    def words(self, class_ids: Iterable[int], lost: Sequence[int] = ()) -> list[Word] | None:
        """The classes that were looked for, without a presence; those with tokens count as present."""
        return [Word(class_id, None, class_id not in lost) for class_id in class_ids] if self.reports_words else None

    def predict(self, inputs: Sequence[Input[PromptAnnotation]]) -> Iterator[Prediction]:
        maps = self.segmenter.scores([request_of(each) for each in inputs])
        truncated: dict[str, str] = {}
        for each in inputs:
            with recorded_warnings() as messages:
                scores = next(maps)
            notes = notes_on(each.sample, messages, [each.prompt.caption], truncated)
            classes, lost = each.prompt.class_ids, each.prompt.lost_classes()
            yield Prediction(scores, classes, lost, notes, self.words(classes, lost))


class OpenPredictor(PromptedPredictor[Query]):
    """The image may lack some of the classes (ask=open).

    queries  sample -> its query; None: nothing is looked for. Raises SampleError
    """

    words_if_none = ()

    def __init__(
        self,
        segmenter: SegmentationModel,
        queries: Callable[[Sample], Query | None],
        noise: Noise = Noise(),
    ) -> None:
        self.segmenter, self.queries, self.noise = segmenter, queries, noise

    @cached_property
    def finder(self) -> Finder:
        """One finder for the whole run, which caches prompts: those of a vocabulary are the same for all images."""
        return self.segmenter.finder()

    def prompt(self, case: Case) -> Query | None:
        return self.queries(case.sample)

    def predict(self, inputs: Sequence[Input[Query]]) -> Iterator[Prediction]:
        rows = [(each.sample.image, each.prompt, each.noise, each.image_id) for each in inputs]
        answers = self.finder.answers(*map(list, zip(*rows)))
        truncated: dict[str, str] = {}
        for each in inputs:
            with recorded_warnings() as messages:
                answer = next(answers)
            yield answered(answer, notes_on(each.sample, messages, answer.prompts, truncated))


class RegionPredictor(PromptedPredictor[PromptAnnotation]):
    """No prompt: regions from self-attention, for `goca.evaluation.matched_iou`."""

    def __init__(self, finder: RegionFinder, merging: Merging, noise: Noise = Noise()) -> None:
        self.finder, self.merging, self.noise = finder, merging, noise

    def prompt(self, case: Case) -> PromptAnnotation:
        return PromptAnnotation("")

    def predict(self, inputs: Sequence[Input[PromptAnnotation]]) -> Iterator[Prediction]:
        noises, ids = [each.noise for each in inputs], [each.image_id for each in inputs]
        regions = self.finder.regions([each.sample.image for each in inputs], self.merging, noises, ids)
        for each, maps in zip(inputs, regions, strict=True):
            yield Prediction(maps, (), notes=each.sample.notes)


def usable(annotation: PromptAnnotation, segmenter: SegmentationModel) -> PromptAnnotation | None:
    """The annotation; None if it has no class and the protocol then counts the whole image as background."""
    return annotation if annotation.class_ids or segmenter.protocol.empty_class != "zero" else None


def request_of(each: Input[PromptAnnotation]) -> Request:
    return Request(each.sample.image, each.prompt, each.noise, each.image_id)


def answered(answer: Answer, notes: Sequence[str]) -> Prediction:
    """The prediction of an answer: the maps of the classes judged present, and the background's."""
    triples = zip(answer.class_ids, answer.presence, answer.present, strict=True)
    words = [Word(*triple) for triple in triples]
    kept = [number for number, word in enumerate(words) if word.taken]
    scores = answer.scores[[*kept, -1]] if kept else None  # nothing is present: all background at every threshold
    return Prediction(scores, [words[number].class_id for number in kept], answer.lost, notes, words)


@contextmanager
def recorded_warnings() -> Iterator[list[Warning]]:
    """Collect the UserWarnings of a block in this thread instead of showing them; those of other threads are shown."""
    messages: list[Warning] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show, thread = warnings.showwarning, threading.get_ident()

        def keep(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
            if threading.get_ident() != thread:
                show(message, category, *where, **options)
            elif issubclass(category, UserWarning):
                messages.append(message)

        warnings.showwarning = keep
        yield messages


def notes_on(sample: Sample, messages: Sequence[Warning], prompts: Iterable[str], cut: dict[str, str]) -> list[str]:
    """Notes on a sample: how its image was read, which prompts were truncated, and other warnings.

    cut  prompt -> its truncation; a batch warns about all its prompts at the first image, so warnings are stored for
         the others
    """
    cut |= {each.prompt: str(each) for each in messages if isinstance(each, PromptCut)}
    own = [str(each) for each in messages if not isinstance(each, PromptCut)]
    return list(dict.fromkeys([*sample.notes, *(cut[prompt] for prompt in prompts if prompt in cut), *own]))
