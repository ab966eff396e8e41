"""`SegmenterConfig`: the settings of the method, read from configs/model/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from goca.config_fields import FIELD_READERS, steps_of
from goca.config_folder import config_folder
from goca.files.text import read_yaml
from goca.method.heads import HEAD_RULES
from goca.method.layers import LAYER_RULES
from goca.method.rescaling import RESCALE_RULES, TOKEN_RULES
from goca.open.denoising import PROBES, Denoising
from goca.open.presence import PRESENCE_RULES
from goca.open.rest import REST_RULES
from goca.protocol import ASK as ASK
from goca.protocol import Protocol
from goca.refine.chain import Step
from goca.schema import (
    ConfigError,
    Count,
    OneOf,
    Pair,
    Range,
    Text,
    check_fields,
    is_list,
    nearest,
    shown,
)

RULES: dict[str, Mapping[str, Any]] = {
    "head_method": HEAD_RULES,
    "layer_method": LAYER_RULES,
    "rescale_method": RESCALE_RULES,
    "token_method": TOKEN_RULES,
    "rest": REST_RULES,
    "presence": PRESENCE_RULES | PROBES,
}
METHODS = ("goca", "diffsegmentor")  # see goca.benchmark.predictor.SEGMENTERS
OPEN_FIELDS = (
    "ask",
    "rest",
    "presence",
    "calibration",
    "denoising",
    "least_presence",
    "floor",
    "half_share",
    "background_words",
    "separator",
)
SHARED = ("_defaults", "_unpublished")  # files on which configs are based; they are not configs themselves
Size = int | tuple[int, int]
Timestep = Annotated[int, Range(0, 999)]
Layers = Text | tuple[Text, ...]


def versions() -> list[str]:
    """The currently registered families."""
    from diffusion_feature.families import VERSIONS

    return list(VERSIONS)


@dataclass(frozen=True)
class SegmenterConfig:
    """Settings of the method. `load_config("sd15")` reads those of configs/model/sd15.yaml.

    pipeline        folder or hub id of the model, used if no other is given
    denoiser        another folder or hub id, whose denoiser replaces the pipeline's; None: the pipeline's own
    version         family of the model: a key of diffusion_feature.families.VERSIONS
    img_size        side, or (height, width), to which images are stretched
    feat_size       side, or (height, width), of the grid on which maps are aggregated and refined
    t               timestep of the noise, 0..999 (see the protocol's `noise`)
    ref_layer       dense feature from which the reference affinity is computed
    cross_layers    cross maps that are aggregated: "all", ids, or patterns with braces {0..2} {1,3}
    self_layers     self maps whose mean is the space map
    head_method, layer_method, rescale_method    names of rules (RULES)
    rows            approximation: number of rows of the reference affinity used for layer weights; None: all rows
    token_method    how the maps of a class's tokens are combined: "mean" or "sum"
    refine          refinement steps, in order: names of goca.refine.chain.REFINEMENTS, or {name: parameters}
    affinity_order  how often the step `affinity` applies the space map; 0: never
    keep_all_objects    one map per background entity, instead of a background map that is their maximum
    flips, draws, timesteps    test-time augmentation (goca.method.augmentation): also the mirrored image; number of
                    noise samples, seeded by the image's id and the sample's number; further timesteps besides t
    method          one of METHODS
    class_prompt    for the method diffsegmentor: the prompt of one class, with {name} and {caption} filled in
    ask             "complete": a prompt names everything in the image; "open": it names what to look for; None: open
                    for texts, complete for annotations (docs/open.md). The following fields are used only by `open`:
    rest            how the rest of the image is scored: a name of goca.open.rest.REST_RULES
    presence        how presence is scored: a name of goca.open.presence.PRESENCE_RULES, or of
                    goca.open.denoising.PROBES, which need further forward passes
    calibration     {slope, midpoint} of the curve from score to probability (goca.open.presence.probability)
    denoising       options of the probe: fields of goca.open.denoising.Denoising, which has its own calibration
    least_presence  classes with a lower probability get no pixels
    floor           the background's score, 0..1, which a class must exceed
    half_share      the highest share of attention at which a class has half its weight
    background_words    a list in configs/vocabulary, or words: written into every prompt after the class names
    separator       text between the words of a prompt
    protocol        "paper", "released" or a mapping of switches
    call            further arguments of the pipeline's call when images are generated
    """

    version: Annotated[str, OneOf(versions)]
    img_size: Annotated[Size, Pair(8, 16384)]
    feat_size: Annotated[Size, Pair(3, 4096)]  # at least 3, since the blur reflects two pixels
    t: Timestep
    ref_layer: Text
    self_layers: Layers
    cross_layers: Layers = "all"
    head_method: Annotated[str, OneOf(HEAD_RULES)] = "dot-product w/o clamp"
    layer_method: Annotated[str, OneOf(LAYER_RULES)] = "dot-product similarity"
    rows: Count | None = None
    rescale_method: Annotated[str, OneOf(RESCALE_RULES)] = "sum-1 rescaling + per-token renorm+"
    token_method: Annotated[str, OneOf(TOKEN_RULES)] = "mean"
    refine: tuple[Any, ...] = ("affinity",)
    affinity_order: Annotated[int, Range(0, 1000)] = 2
    keep_all_objects: bool = False
    flips: bool = False
    draws: Count = 1
    timesteps: tuple[Timestep, ...] = ()
    method: Annotated[str, OneOf(METHODS)] = "goca"
    class_prompt: str = "a photograph of {name}, {caption}"
    ask: Annotated[str, OneOf(ASK)] | None = None
    rest: Annotated[str, OneOf(REST_RULES)] = "vocabulary"
    presence: Annotated[str, OneOf(PRESENCE_RULES | PROBES)] = "reference spread"
    calibration: Mapping[str, float] = field(default_factory=lambda: {"slope": 2.9, "midpoint": 0.092})
    denoising: Mapping[str, Any] = field(default_factory=lambda: dataclasses.asdict(Denoising()))
    least_presence: Annotated[float, Range(0, 1)] = 0.1
    floor: Annotated[float, Range(0, 1)] = 0.45
    half_share: Annotated[float, Range(0, 1)] = 0.15
    background_words: str | tuple[str, ...] = "common"
    separator: str = ", "
    protocol: Protocol = Protocol()  # noqa: RUF009 - frozen
    pipeline: Text | None = None
    denoiser: Text | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", Protocol.of(self.protocol))
        object.__setattr__(self, "refine", tuple(step.plain() for step in self.steps))
        check_fields(self, ConfigError)
        for name, read in FIELD_READERS.items():
            object.__setattr__(self, name, read(getattr(self, name)))
        along = [step.name for step in self.steps if step.refinement.along_space_map]
        if along and not self.self_layers:
            raise ConfigError(f"refine: {along[0]} needs the space map; name the maps for it in self_layers")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.feat_size if isinstance(self.feat_size, tuple) else (self.feat_size, self.feat_size)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of `refine`, read once."""
        return steps_of(self.refine)

    def dense_layers(self) -> tuple[str, ...]:
        """The dense features that steps of `refine` need."""
        return tuple(dict.fromkeys(step.layer for step in self.steps if step.layer))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for result files; `load_config` accepts them."""
        return dataclasses.asdict(self)


FIELDS = tuple(field.name for field in dataclasses.fields(SegmenterConfig))
REQUIRED = tuple(
    f.name for f in dataclasses.fields(SegmenterConfig) if f.default is f.default_factory is dataclasses.MISSING
)


def load_config(config: str | Mapping[str, Any] | SegmenterConfig, **overrides: Any) -> SegmenterConfig:
    """Read a config, and replace the fields in `overrides`.

    config   a name in configs/model, a mapping of fields, or a SegmenterConfig. A mapping may have a base:
             {"of": "sd15", "head_method": "average"}
    errors   ConfigError, ProtocolError

    If a pipeline is given without a denoiser, its own denoiser is used.

    >>> load_config("sd15", head_method="average").t
    100
    """
    if isinstance(config, SegmenterConfig):
        return dataclasses.replace(config, **({"denoiser": None} if "pipeline" in overrides else {}) | overrides)
    return SegmenterConfig(**read_fields(config, **overrides))


def read_fields(config: str | Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """The fields of a config, including those of its base. Raises ConfigError for unknown and missing fields."""
    if not isinstance(config, str | Mapping):
        raise ConfigError(f"a model config is {shown(config)}; expected a name, or a mapping of {', '.join(FIELDS)}")
    own = {} if isinstance(config, str) else with_bases(dict(config))
    base = read_config(config) if isinstance(config, str) else read_config(own.pop("of")) if "of" in own else {}
    own |= overrides
    values = base | ({"denoiser": None} if "pipeline" in own else {}) | own
    if unknown := [name for name in values if name not in FIELDS]:
        near, fields = nearest(unknown[0], FIELDS), ", ".join(FIELDS)
        raise ConfigError(f"unknown model config field {shown(unknown[0])} (nearest: {near}); fields: {fields}")
    if missing := [name for name in REQUIRED if name not in values]:
        known = ", ".join(names())
        raise ConfigError(f"the model config lacks {', '.join(missing)}; set them, or a base with of: one of {known}")
    return values


def names() -> list[str]:
    """The names of the configs in configs/model."""
    return sorted(file.stem for file in folder().glob("[!_]*.yaml"))


def read_config(name: str) -> dict[str, Any]:
    """The fields of configs/model/NAME.yaml, on top of those of its bases (Hydra's defaults list)."""
    if name not in (*names(), *SHARED):
        near, known = nearest(name, names()), ", ".join(names())
        raise ConfigError(f"there is no model config {shown(name)} (nearest: {near}); known: {known}")
    return with_bases(read_yaml(folder() / f"{name}.yaml"))  # type: ignore[arg-type]


def with_bases(own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file, on top of those of its bases (Hydra's defaults list).

    As in Hydra, `_self_` is appended to a list without it: the file's own values override those of its bases.
    """
    values: dict[str, Any] = {}
    bases = own.pop("defaults", [])
    if not is_list(bases):
        raise ConfigError(f"defaults is {shown(bases)}; expected a list of model configs, such as [sd15, _self_]")
    for base in bases if "_self_" in bases else [*bases, "_self_"]:
        values |= own if base == "_self_" else read_config(base)
    return values


def folder() -> Path:
    """configs/model."""
    return config_folder() / "model"
