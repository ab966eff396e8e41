"""The keys of a run besides its model, data set and protocol: their types, defaults and limits. Loads without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from goca.benchmark.word_sources import DEFAULT, WORD_SOURCES, TaggerConfig
from goca.protocol import ASK
from goca.schema import Count, OneOf, Place, Text, Threshold
from goca.variants.merging import Merging

TASKS = ("segmentation", "unsupervised")
DTYPES = ("auto", "float32", "float16", "bfloat16")
LABEL_MAPS = ("fixed", "all")  # thresholds at which goca.benchmark.label_maps draws
OFFLOADS = ("model", "sequential")  # diffusion_feature.devices.OFFLOADS


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Keys of configs/config.yaml, which says what each is for. A new key is a line here and a line there."""

    run_dir: Place
    ask: Annotated[str, OneOf(ASK)] | None = None
    words: Annotated[str, OneOf(WORD_SOURCES)] = DEFAULT
    tagger: TaggerConfig = TaggerConfig()  # noqa: RUF009 - frozen
    task: Annotated[str, OneOf(TASKS)] = TASKS[0]
    merging: Merging = Merging()  # noqa: RUF009 - frozen
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
