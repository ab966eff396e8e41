"""Samples of a data set in, predictions out: what the evaluation asks of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusion_feature import PromptCut
from numpy.typing import NDArray
from torch import Tensor

from goca.datasets import Sample, SampleError
from goca.diffsegmentor import DiffSegmentor
from goca.evaluation import Prediction
from goca.prompts import PromptAnnotation
from goca.segmenter import Segmenter

SEGMENTERS: dict[str, type[Segmenter]] = {kind.method: kind for kind in (Segmenter, DiffSegmentor)}


def noise_id(sample: Sample, seed: int) -> str:
    """What a run with that seed makes the noise of a sample from."""
    return f"{sample.id}/{seed}" if seed else sample.id


@dataclass(frozen=True)
class Predictor:
    """A segmenter, where its prompts come from, and its noise: a `goca.evaluation.Segmentor`.

    prompts  sample -> annotation; raises SampleError where there is none
    noise    sample -> noise to add, or None: drawn, seeded by the image's id and `seed`
    """

    segmenter: Segmenter
    prompts: Callable[[Sample], PromptAnnotation]
    noise: Callable[[Sample], NDArray[np.floating]] | None = None
    seed: int = 0

    def __call__(self, samples: Sequence[Sample]) -> list[Prediction | SampleError]:
        """Predictions in the order of the samples; those with something to look for share one forward."""
        found: list[Prediction | SampleError] = []
        wanted: dict[int, tuple[Sample, PromptAnnotation, Tensor | None]] = {}
        for number, sample in enumerate(samples):
            found.append(Prediction(None, ()))  # nothing to look for: everything is background
            try:
                annotation = self.prompts(sample)
                noise = None if self.noise is None else torch.from_numpy(self.noise(sample))
                if annotation.class_ids or self.segmenter.protocol.empty_class != "zero":
                    wanted[number] = (sample, annotation, noise)
            except SampleError as error:
                found[number] = error
        for number, prediction in zip(wanted, self._predict(wanted.values())):
            found[number] = prediction
        return found

    def _predict(self, wanted: Iterable[tuple[Sample, PromptAnnotation, Tensor | None]]) -> Iterable[Prediction]:
        samples, annotations, noises = zip(*wanted) if wanted else ((), (), ())
        ids = [noise_id(sample, self.seed) for sample in samples]
        captures = self.segmenter.captures([sample.image for sample in samples], annotations, noises, ids)
        cut: dict[str, str] = {}  # a batch warns of all its prompts when its first picture is asked for
        for sample, annotation in zip(samples, annotations):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scores = self.segmenter.scores(*next(captures), annotation, sample.image)
            messages = [each.message for each in caught if issubclass(each.category, UserWarning)]
            cut |= {each.prompt: str(each) for each in messages if isinstance(each, PromptCut)}
            own = [str(each) for each in messages if not isinstance(each, PromptCut)]
            of_prompt = [cut[annotation.caption]] if annotation.caption in cut else []
            notes = dict.fromkeys([*sample.notes, *of_prompt, *own])
            yield Prediction(scores, annotation.class_ids, annotation.lost_classes(), list(notes))
