"""What a run of the method is set to: one dataclass behind configs/model/*.yaml."""

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
METHODS = ("goca", "diffsegmentor")  # what makes score maps: see goca.benchmark.predictor.SEGMENTERS
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
SHARED = ("_defaults", "_unpublished")  # files that configs start from, which are none themselves
Size = int | tuple[int, int]
Timestep = Annotated[int, Range(0, 999)]
Layers = Text | tuple[Text, ...]


def versions() -> list[str]:
    """The families that are known by now."""
    from diffusion_feature.families import VERSIONS

    return list(VERSIONS)


@dataclass(frozen=True)
class SegmenterConfig:
    """One setting of the method. `load_config("sd15")` reads one of configs/model.

    pipeline        folder or hub id, used where none is given
    denoiser        a second folder or hub id, whose denoiser takes the place of that pipeline's own; None: its own
    version         family of the model: a key of diffusion_feature.families.VERSIONS
    img_size        side of the square, or (height, width), to which pictures are stretched
    feat_size       the same of the grid on which maps are aggregated and refined
    t               noise: timestep 0..999 (see the protocol's `noise`)
    ref_layer       dense feature that the reference affinity is made of
    cross_layers    cross maps that are aggregated: "all", ids, or patterns with braces {0..2} {1,3}
    self_layers     self maps that make the space map
    rows            approximate: layers are weighted by so many rows of the reference affinity; None: by all of them
    token_method    what the map of a class of several tokens is: their mean or their sum
    refine          steps of refinement, in order: names of goca.refine.chain.REFINEMENTS, or {name: parameters}
    affinity_order  how often the step `affinity` applies the space map; 0: not at all
    keep_all_objects    one map per background entity, instead of one background map that is their maximum
    flips, draws, timesteps    further looks whose maps are averaged with the first (goca.method.augmentation):
                    mirrored; that many noise draws in all, seeded by the image's id and their number; timesteps
                    besides t
    method          one of METHODS
    class_prompt    of the method diffsegmentor: the prompt of one class, with {name} and {caption} filled in
    ask             "complete": a prompt names all that is in the picture; "open": it names what is looked for; None:
                    open for words, complete for annotations (docs/open.md). The fields below are of `open` alone:
    rest            what stands for the rest of the picture: a name of goca.open.rest.REST_RULES
    presence        how presence is scored: a name of goca.open.presence.PRESENCE_RULES, or of
                    goca.open.denoising.PROBES, which take further forwards
    calibration     {slope, midpoint} of the curve that makes a probability of it (goca.open.presence.probability)
    denoising       options of the probe: fields of goca.open.denoising.Denoising, which has its own calibration
    least_presence  classes below this probability get nothing
    floor           what a class must score, 0..1, where it is to be more than background
    half_share      the share of the words' attention that a class must reach somewhere for half its weight
    background_words    a list in configs/vocabulary, or words: written into every prompt, behind those looked for
    separator       between the words of a prompt
    protocol        "paper", "released" or a mapping of switches
    call            arguments with which the pipeline is called to generate images, beside prompt, size and guidance
    """

    version: Annotated[str, OneOf(versions)]
    img_size: Annotated[Size, Pair(8, 16384)]
    feat_size: Annotated[Size, Pair(3, 4096)]  # the blur reflects two pixels, so that three are needed
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
        """Plain values, for result files; `load_config` takes them back."""
        return dataclasses.asdict(self)


FIELDS = tuple(field.name for field in dataclasses.fields(SegmenterConfig))
REQUIRED = tuple(
    f.name for f in dataclasses.fields(SegmenterConfig) if f.default is f.default_factory is dataclasses.MISSING
)


def load_config(config: str | Mapping[str, Any] | SegmenterConfig, **overrides: Any) -> SegmenterConfig:
    """From the name of a file in configs/model, a mapping of fields, or a SegmenterConfig; then the overrides.

    A mapping may name its base: {"of": "sd15", "head_method": "average"}. A pipeline that is named comes with its own
    denoiser, unless that is named too. Errors: ConfigError, ProtocolError.
    """
    if isinstance(config, SegmenterConfig):
        return dataclasses.replace(config, **({"denoiser": None} if "pipeline" in overrides else {}) | overrides)
    return SegmenterConfig(**read_fields(config, **overrides))


def read_fields(config: str | Mapping[str, Any], **overrides: Any) -> dict[str, Any]:
    """The fields of a config, those of its base among them. Raises ConfigError for unknown and missing ones."""
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
        raise ConfigError(f"the model config lacks {', '.join(missing)}; name a base with of: one of {known}")
    return values


def names() -> list[str]:
    """The configs that are known by name."""
    return sorted(file.stem for file in folder().glob("[!_]*.yaml"))


def read_config(name: str) -> dict[str, Any]:
    """The fields of configs/model/NAME.yaml, its bases (Hydra's defaults list) first."""
    if name not in (*names(), *SHARED):
        near, known = nearest(name, names()), ", ".join(names())
        raise ConfigError(f"there is no model config {shown(name)} (nearest: {near}); known: {known}")
    return with_bases(read_yaml(folder() / f"{name}.yaml"))  # type: ignore[arg-type]


def with_bases(own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file's content, those of its bases (Hydra's defaults list) first.

    As with Hydra, a list without `_self_` has it at the end: what the file says itself beats its bases.
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
