"""The keys of a run besides its model, data set and protocol: their types, defaults and limits. Loads without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from goca.benchmark.word_sources import DEFAULT, WORD_SOURCES, TaggerConfig
from goca.protocol import ASK
from goca.schema import ConfigError, Count, OneOf, Place, Text, Threshold, shown

TASKS = ("segmentation", "unsupervised")
DTYPES = ("auto", "float32", "float16", "bfloat16")
LABEL_MAPS = ("fixed", "all")  # thresholds at which goca.benchmark.label_maps draws
OFFLOADS = ("model", "sequential")  # diffusion_feature.devices.OFFLOADS


@dataclass(frozen=True)
class Merging:
    """How self-attention is merged; see `goca.refine.merge_proposals`."""

    threshold: float = 2e-4
    stride: int = 4
    rounds: int = 3

    def __post_init__(self) -> None:
        numbers = all(isinstance(each, int) and not isinstance(each, bool) for each in (self.stride, self.rounds))
        number = isinstance(self.threshold, float | int) and not isinstance(self.threshold, bool)
        if not numbers or not min(self.stride, self.rounds) >= 1 or max(self.stride, self.rounds) > 10**6 or not number:
            found = ", ".join(f"{name}: {shown(value)}" for name, value in vars(self).items())
            raise ConfigError(f"merging is {found}; expected a threshold, and whole numbers of at least 1")
        if not 0 <= self.threshold < 1e300:
            raise ConfigError(f"merging.threshold is {shown(self.threshold)}; it must be a finite number of at least 0")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Merging:
        """From a mapping of fields. Raises ConfigError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values := {} if values is None else values, Mapping):
            raise ConfigError(f"merging is {shown(values)}; expected a mapping of {', '.join(names)}")
        if unknown := [key for key in values if key not in names]:
            raise ConfigError(f"merging has no {shown(unknown[0])}; there are: {', '.join(names)}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Keys of configs/config.yaml, which says what each is for. A new key is a line here and a line there."""

    run_dir: Place
    ask: Annotated[str, OneOf(ASK)] | None = None
    words: Annotated[str, OneOf(WORD_SOURCES)] = DEFAULT
    tagger: TaggerConfig = TaggerConfig()  # noqa: RUF009 - frozen
    task: Annotated[str, OneOf(TASKS)] = TASKS[0]
    merging: Merging = Merging()
    annotations: Place | None = None
    noise_file: Place | None = None
    seed: int = 0
    limit: Count | None = None
    fixed_threshold: Threshold = 0
    batch_size: Count = 1
    max_bytes: Count | None = None
    device: Text = "auto"
    dtype: Annotated[str, OneOf(DTYPES)] = "auto"
    offload: Annotated[str, OneOf(OFFLOADS)] | None = None
    int8_text: bool = False
    variant: Text | None = "auto"
    vae_dtype: Annotated[str, OneOf(DTYPES)] = "auto"
    label_maps: Annotated[str, OneOf(LABEL_MAPS)] | None = None
    strict: bool = False


GROUPS = ("model", "dataset", "protocol")
BESIDES = ("choices", "roots")  # what else a configuration may hold: Hydra's choices, the roots of a sweep
KEYS = (*GROUPS, *(field.name for field in dataclasses.fields(RunSettings)), *BESIDES)
