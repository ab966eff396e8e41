"""What a run of the method is set to: one dataclass behind configs/model/*.yaml."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from goca.heads import HEAD_RULES
from goca.layers import LAYER_RULES
from goca.open.presence import PRESENCE_RULES
from goca.open.rest import REST_RULES
from goca.open.vocabulary import VocabularyError, background_words
from goca.protocol import ASK as ASK
from goca.protocol import Protocol
from goca.refine.chain import ChainError, Step, read_chain
from goca.rescaling import RESCALE_RULES, TOKEN_RULES


class ConfigError(ValueError):
    """An unknown config, field, rule or value; the message lists the known ones."""


RULES: dict[str, Mapping[str, Any]] = {
    "head_method": HEAD_RULES,
    "layer_method": LAYER_RULES,
    "rescale_method": RESCALE_RULES,
    "token_method": TOKEN_RULES,
    "rest": REST_RULES,
    "presence": PRESENCE_RULES,
}
METHODS = ("goca", "diffsegmentor")  # what makes score maps: see goca.predictor.SEGMENTERS
CURVE = ("slope", "midpoint")
LEAST = {"img_size": 8, "feat_size": 3, "t": 0, "affinity_order": 0, "draws": 1}  # the blur reflects two pixels: 3
SHARED = "_defaults"  # the file that all configs start from
SIZES = ("img_size", "feat_size")
Size = int | tuple[int, int]


@dataclass(frozen=True)
class SegmenterConfig:
    """One setting of the method. `load_config("sd15")` reads one of configs/model.

    pipeline        folder or hub id, used where none is given
    version         family of the model: a key of diffusion_feature.families.VERSIONS
    img_size        side of the square, or (height, width), to which pictures are stretched
    feat_size       the same of the grid on which maps are aggregated and refined
    t               noise: timestep 0..999 (see the protocol's `noise`)
    ref_layer       dense feature that the reference affinity is made of
    cross_layers    cross maps that are aggregated: "all", ids, or patterns with braces {0..2} {1,3}
    self_layers     self maps that make the space map
    token_method    what the map of a class of several tokens is: their mean or their sum
    refine          steps of refinement, in order: names of goca.refine.chain.REFINEMENTS, or {name: parameters}
    affinity_order  how often the step `affinity` applies the space map; 0: not at all
    keep_all_objects    one map per background entity, instead of one background map that is their maximum
    flips, draws, timesteps    further looks whose maps are averaged with the first (goca.views): mirrored; that many
                    noise draws in all, seeded by the image's id and their number; timesteps besides t
    method          one of METHODS
    class_prompt    of the method diffsegmentor: the prompt of one class, with {name} and {caption} filled in
    ask             "complete": a prompt names all that is in the picture; "open": it names what is looked for; None:
                    open for words, complete for annotations (docs/open.md). The fields below are of `open` alone:
    rest            what stands for the rest of the picture: a name of goca.open.rest.REST_RULES
    presence        what tells that a word is there: a name of goca.open.presence.PRESENCE_RULES
    calibration     {slope, midpoint} of the logistic curve that makes a probability of it
    least_presence  classes below this probability get nothing
    background_words    a list in configs/vocabulary, or words: written into every prompt, behind those looked for
    separator       between the words of a prompt
    protocol        "paper", "released" or a mapping of switches
    """

    version: str
    img_size: Size
    feat_size: Size
    t: int
    ref_layer: str
    self_layers: str | tuple[str, ...]
    cross_layers: str | tuple[str, ...] = "all"
    head_method: str = "dot-product w/o clamp"
    layer_method: str = "dot-product similarity"
    rescale_method: str = "sum-1 rescaling + per-token renorm+"
    token_method: str = "mean"
    refine: tuple[Any, ...] = ("affinity",)
    affinity_order: int = 2
    keep_all_objects: bool = False
    flips: bool = False
    draws: int = 1
    timesteps: tuple[int, ...] = ()
    method: str = "goca"
    class_prompt: str = "a photograph of {name}, {caption}"
    ask: str | None = None
    rest: str = "vocabulary"
    presence: str = "share peak"
    calibration: Mapping[str, float] = field(default_factory=lambda: {"slope": 12.0, "midpoint": 0.4})
    least_presence: float = 0.5
    background_words: str | tuple[str, ...] = "common"
    separator: str = ", "
    protocol: Protocol = Protocol()  # noqa: RUF009 - frozen
    pipeline: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", Protocol.of(self.protocol))
        for name in ("cross_layers", "self_layers"):
            layers = getattr(self, name)
            object.__setattr__(self, name, layers if isinstance(layers, str) else tuple(layers))
        for name, rules in {**RULES, "method": METHODS}.items():
            if (rule := getattr(self, name)) not in rules:
                raise ConfigError(f"{name} {rule!r} is not known; there are: {', '.join(rules)}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name in SIZES and isinstance(value, list | tuple) and len(value) == 2:
                object.__setattr__(self, name, tuple(value))
                counts = list(value)
            else:
                counts = [value]
            if any(not isinstance(each, int) or isinstance(each, bool) or each < least for each in counts):
                pair = ", or two of them (height, width)" if name in SIZES else ""
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}{pair}")
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        if wrong := [t for t in self.timesteps if not isinstance(t, int) or isinstance(t, bool) or t < 0]:
            raise ConfigError(f"timesteps holds {wrong[0]!r}; expected whole numbers of at least 0")
        if not isinstance(self.class_prompt, str) or self.class_prompt.count("{name}") != 1:
            raise ConfigError(f"class_prompt is {self.class_prompt!r}; expected a text with {{name}} in it, once")
        if not isinstance(self.flips, bool):
            raise ConfigError(f"flips is {self.flips!r}; expected true or false")
        self._check_open()
        object.__setattr__(self, "refine", tuple(step.plain() for step in self.steps()))
        along = [step.name for step in self.steps() if "space_map" in step.refinement.needs]
        if along and not self.self_layers:
            raise ConfigError(f"refine: {along[0]} moves scores along the space map; name its maps in self_layers")

    def _check_open(self) -> None:
        """The fields of ask=open."""
        if self.ask not in (None, *ASK):
            raise ConfigError(f"ask is {self.ask!r}; it can be one of: {', '.join(ASK)}, or null")
        curve = dict(self.calibration) if isinstance(self.calibration, Mapping) else {}
        if set(curve) != set(CURVE) or not all(is_number(value) for value in curve.values()):
            raise ConfigError(f"calibration is {self.calibration!r}; expected numbers: {', '.join(CURVE)}")
        object.__setattr__(self, "calibration", curve)
        if not is_number(self.least_presence) or not 0 <= self.least_presence <= 1:
            raise ConfigError(f"least_presence is {self.least_presence!r}; it must be a probability, 0 to 1")
        if not isinstance(self.separator, str) or any(map(str.isalnum, self.separator)):
            raise ConfigError(f"separator is {self.separator!r}; expected marks or blanks, such as ', '")
        try:
            words = background_words(self.background_words)
        except VocabularyError as error:
            raise ConfigError(f"background_words: {error}") from None
        if not isinstance(self.background_words, str):
            object.__setattr__(self, "background_words", words)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.feat_size if isinstance(self.feat_size, tuple) else (self.feat_size, self.feat_size)

    def steps(self) -> tuple[Step, ...]:
        """The steps of `refine`."""
        try:
            return read_chain(self.refine)
        except ChainError as error:
            raise ConfigError(str(error)) from None

    def dense_layers(self) -> tuple[str, ...]:
        """The dense features that steps of `refine` look at."""
        return tuple(dict.fromkeys(step.layer for step in self.steps() if step.layer))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for result files; `load_config` takes them back."""
        return dataclasses.asdict(self)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


FIELDS = tuple(field.name for field in dataclasses.fields(SegmenterConfig))
REQUIRED = tuple(f.name for f in dataclasses.fields(SegmenterConfig)
                 if f.default is f.default_factory is dataclasses.MISSING)  # fmt: skip


def load_config(config: str | Mapping[str, Any] | SegmenterConfig, **overrides: Any) -> SegmenterConfig:
    """From the name of a file in configs/model, a mapping of fields, or a SegmenterConfig; then the overrides.

    A mapping may name its base: {"of": "sd15", "head_method": "average"}. Errors: ConfigError, ProtocolError.
    """
    if isinstance(config, SegmenterConfig):
        return dataclasses.replace(config, **overrides)
    values = read_config(config) if isinstance(config, str) else with_bases(dict(config))
    base = read_config(values.pop("of")) if "of" in values else {}
    values = {**base, **values, **overrides}
    if unknown := [name for name in values if name not in FIELDS]:
        near = difflib.get_close_matches(unknown[0], FIELDS, n=1, cutoff=0.0)[0]
        fields = ", ".join(FIELDS)
        raise ConfigError(f"{unknown[0]!r} is no field of a model config (nearest: {near}); fields: {fields}")
    if missing := [name for name in REQUIRED if name not in values]:
        known = ", ".join(names())
        raise ConfigError(f"the model config lacks {', '.join(missing)}; name a base with of: one of {known}")
    return SegmenterConfig(**values)


def names() -> list[str]:
    """The configs that are known by name."""
    return sorted(file.stem for file in folder().glob("[!_]*.yaml"))


def read_config(name: str) -> dict[str, Any]:
    """The fields of configs/model/NAME.yaml, its bases (Hydra's defaults list) first."""
    from omegaconf import OmegaConf

    if name not in (*names(), SHARED):
        near, known = difflib.get_close_matches(name, names(), n=1, cutoff=0.0), ", ".join(names())
        raise ConfigError(f"there is no model config {name!r} (nearest: {', '.join(near)}); known: {known}")
    return with_bases(OmegaConf.to_container(OmegaConf.load(folder() / f"{name}.yaml")))  # type: ignore[arg-type]


def with_bases(own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file's content, those of its bases (Hydra's defaults list) first."""
    values: dict[str, Any] = {}
    for base in own.pop("defaults", ["_self_"]):
        values |= own if base == "_self_" else read_config(base)
    return values


@cache
def folder() -> Path:
    """configs/model: inside the package where it is installed, else beside the sources."""
    here = Path(__file__).parent
    return next(path for path in (here / "configs" / "model", here.parents[1] / "configs" / "model") if path.is_dir())
