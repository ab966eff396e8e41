"""The models behind the page: only one is in memory, and only one run is executed at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from diffusion_feature.errors import PartMissing
from diffusion_feature.reading import LIBRARIES
from diffusion_feature.repository import Repository

from goca.benchmark.predictor import SEGMENTERS
from goca.cli.models import embedded_model
from goca.config import SegmenterConfig, load_config, names
from goca.embedded import resolve
from goca.errors import GocaError
from goca.generation.loading import load_pipeline
from goca.segmentation_model import SegmentationModel

PIPELINES_OWN = "stable_diffusion"  # the library of diffusers' own safety checker in model_index.json


Say = Callable[..., None]  # called with a progress message, and with (done, all) if the work has steps


def silent(text: str, steps: tuple[int, int] | None = None) -> None:
    """A `Say` for callers that show no progress."""


@dataclass(frozen=True)
class Choice:
    """The model to load: a name in configs/model, and a folder or hub id ("": the config's own)."""

    model: str
    place: str = ""

    @property
    def config(self) -> SegmenterConfig:
        return load_config(self.model)

    @property
    def pipeline(self) -> str:
        return self.place.strip() or str(self.config.pipeline)

    @property
    def embedded(self) -> str | None:
        """The name of the embedded model, if it is one."""
        return embedded_model(self.pipeline)


def known_models() -> list[str]:
    """The configs that can segment an image."""
    return [name for name in names() if load_config(name).method in SEGMENTERS]


class PlaceNotOffered(GocaError, ValueError):
    """A pipeline that the page does not offer."""


class Models:
    """Lends a segmenter or a pipeline. The last one stays loaded until another is requested.

    device, dtype   as for Segmenter.from_pretrained
    places          the pipelines that may be chosen besides the configs' own; None: any folder and hub id

    While one caller uses a model, all others wait, so neither memory nor a generation's trace is shared. `say` reports
    the waiting and the loading.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto", places: Sequence[str] | None = None):
        self.device, self.dtype, self.places = device, dtype, places
        self._lock = Lock()
        self._key: tuple[str, Choice] | None = None
        self._loaded: Any = None

    def check(self, choice: Choice) -> None:
        """Raises PlaceNotOffered for a pipeline that may not be chosen, whether or not it exists."""
        if self.places is not None and choice.place.strip() not in ("", *self.places):
            offered = ", ".join(("the model's own", *self.places))
            raise PlaceNotOffered(f"This page offers no such pipeline; it offers: {offered}")

    def segmenter(self, choice: Choice, say: Say = silent) -> AbstractContextManager[SegmentationModel]:
        """Errors: PlaceNotOffered, those of Segmenter.from_pretrained."""
        return self._held("segmenter", choice, self._read_segmenter, say)

    def pipe(self, choice: Choice, say: Say = silent) -> AbstractContextManager[Any]:
        """The whole text-to-image pipeline. Errors: PipelineNotFound, PartMissing, OSError."""
        return self._held("pipe", choice, self._read_pipe, say)

    @contextmanager
    def _held(self, kind: str, choice: Choice, read: Callable[[Choice], Any], say: Say) -> Iterator[Any]:
        self.check(choice)
        if self._lock.locked():
            say("Waiting for another run to end")
        with self._lock:
            if self._key != (kind, choice):
                say(f"Reading the model {choice.model}: this can take a minute, and is done once")
                self._clear()
                self._loaded, self._key = read(choice), (kind, choice)
            yield self._loaded

    def _clear(self) -> None:
        self._key = self._loaded = None
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def _read_segmenter(self, choice: Choice) -> SegmentationModel:
        config = choice.config
        return SEGMENTERS[config.method].from_pretrained(choice.pipeline, config, self.device, self.dtype)

    def _read_pipe(self, choice: Choice) -> Any:
        location = resolve(choice.pipeline)
        for name, (library, _) in Repository(location).parts().items():
            if library not in (*LIBRARIES, PIPELINES_OWN):
                raise PartMissing(
                    f"{location}: {name!r} is from library {library!r}; expected one of: {', '.join(LIBRARIES)}"
                )
        denoiser = None if choice.place.strip() else choice.config.denoiser
        with without_bars():
            return load_pipeline(location, choice.config, self.device, self.dtype, denoiser)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without diffusers' progress bars; `quiet` does the same for transformers."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
