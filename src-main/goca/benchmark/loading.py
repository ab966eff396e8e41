"""Load the model of a run as a `Predictor`: one function per kind of prompt, in the table `PREDICTORS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from goca.benchmark.prediction import Predictor
from goca.benchmark.predictor import SEGMENTERS, CompletePredictor, Noise, OpenPredictor, RegionPredictor
from goca.benchmark.word_prompts import WordPrompts
from goca.datasets import Dataset, class_labels
from goca.variants.regions import RegionFinder

if TYPE_CHECKING:
    from goca.benchmark.benchmark import Benchmark
    from goca.benchmark.run_store import RunStore
    from goca.segmentation_model import SegmentationModel

Load = Callable[["Benchmark", Dataset, Any, Noise, "RunStore"], Predictor]


def complete(run: Benchmark, dataset: Dataset, source: Any, noise: Noise, store: RunStore) -> Predictor:
    """Prompts name everything in the image (ask=complete); source: WordPrompts or an AnnotationFile."""
    segmenter = segmenter_of(run, dataset, source, store)
    prompts = source.annotated(run.annotator(dataset, segmenter.extractor.parts))
    return CompletePredictor(segmenter, prompts, noise, reports_words=not run.published)


def looked_for(run: Benchmark, dataset: Dataset, source: WordPrompts, noise: Noise, store: RunStore) -> Predictor:
    """Prompts name what to look for (ask=open)."""
    return OpenPredictor(segmenter_of(run, dataset, source, store), source.query, noise)


def regions(run: Benchmark, dataset: Dataset, source: None, noise: Noise, store: RunStore) -> Predictor:
    """No prompts (task=unsupervised)."""
    return RegionPredictor(run.load(RegionFinder, store), run.merging, noise)


PREDICTORS: dict[str | None, Load] = {"complete": complete, "open": looked_for, None: regions}  # ask; None: no prompts


def segmenter_of(run: Benchmark, dataset: Dataset, source: Any, store: RunStore) -> SegmentationModel:
    """The run's segmenter, and the tagger of its prompts if they need one."""
    if isinstance(source, WordPrompts) and source.asked.tagger is not None:
        source.asked.tagger.load()
    segmenter = run.load(SEGMENTERS[run.model.method], store)
    segmenter.use_class_names(dict(enumerate(class_labels(dataset.class_names))))
    return segmenter
