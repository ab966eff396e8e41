"""Chains of refinement steps as data: `refine: [affinity, {dense_crf: {iterations: 5}}]` in a model config.

Steps run in the given order. Scores start on the config's grid (feat_size); REFINEMENTS states the size of the maps
that each step needs and returns. The last map is the background's, and every step includes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from typing import Protocol as Structure

from torch import Tensor

from goca.method.rescaling import RESCALE_RULES, rescale_scores
from goca.method.summary import AttentionSummary
from goca.protocol import PRESETS, Protocol
from goca.refine.affinity import activation_affinity, affinity
from goca.refine.crf import dense_crf
from goca.refine.errors import ChainError, ImageMissing, MapNotCaptured, RefineError
from goca.refine.merging import merge_maps
from goca.refine.pamr import filtered_pamr, median
from goca.refine.prototypes import prototypes
from goca.schema import OneOf, nearest, refusal, shown


class ChainConfig(Structure):
    """The fields of `goca.config.SegmenterConfig` that a chain reads."""

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def affinity_order(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def protocol(self) -> Protocol: ...


@dataclass(frozen=True)
class RefinementInputs:
    """The inputs of steps besides the scores.

    summary  attention of the image's batch; None: none was collected
    number   the image's number in the batch
    image    in any form that `goca.refine.images.rgb_tensor` accepts; None: no image
    layers   a layer's name in a step -> its id in `summary.dense`, if they differ (`vit-block{1/2}-attn-out`)
    """

    summary: AttentionSummary | None
    number: int = 0
    image: Any = None
    layers: Mapping[str, str] = field(default_factory=dict)

    def space_map(self, step: str) -> Tensor:
        """Self-attention   [g*g, g*g], row = query. Raises MapNotCaptured."""
        space = None if self.summary is None else self.summary.space_map()
        if space is None:
            raise MapNotCaptured(f"{step} needs the space map, but the config names no self_layers for it")
        return space[self.number]

    def require_image(self, step: str) -> Any:
        """The image. Raises ImageMissing."""
        if self.image is None:
            raise ImageMissing(f"{step} needs the image, but there is none: pass it, or leave out the step")
        return self.image

    def dense(self, step: str, name: str) -> Tensor:
        """A dense feature   [C, h, w]. Raises MapNotCaptured, and RefineError for a feature of the text."""
        features = {} if self.summary is None else self.summary.dense
        layer = self.layers.get(name, name)
        if layer not in features:
            collected = ", ".join(features) or "none"
            raise MapNotCaptured(f"{step} needs the feature {name!r}, which was not captured (captured: {collected})")
        if features[layer].ndim != 4:
            raise RefineError(f"{step}: {name!r} is a feature of text tokens; expected one of image tokens")
        return features[layer][self.number]


Apply = Callable[..., Tensor]  # (step's name, scores, inputs, **parameters) -> scores


def on_scores(function: Callable[..., Tensor]) -> Apply:
    """A step that uses only the scores."""
    return lambda step, scores, inputs, **parameters: function(scores, **parameters)


def on_space_map(function: Callable[..., Tensor]) -> Apply:
    """A step that propagates scores along self-attention."""
    return lambda step, scores, inputs, **parameters: function(scores, inputs.space_map(step), **parameters)


def on_image(function: Callable[..., Tensor]) -> Apply:
    """A step that follows the image's colours."""
    return lambda step, scores, inputs, **parameters: function(scores, inputs.require_image(step), **parameters)


def on_dense(function: Callable[..., Tensor]) -> Apply:
    """A step that uses the dense feature of its parameter `layer`."""

    def apply(step: str, scores: Tensor, inputs: RefinementInputs, layer: str, **parameters: Any) -> Tensor:
        return function(scores, inputs.dense(step, layer), **parameters)

    return apply


def nearest_preset(config: ChainConfig) -> str:
    """The preset that agrees with more switches of the config's protocol; `paper` if both agree with equally many."""
    ours = config.protocol.to_dict().items()
    return max(PRESETS, key=lambda name: len(ours & Protocol.of(name).to_dict().items()))


@dataclass(frozen=True)
class Refinement:
    """One kind of step.

    apply            its function
    parameters       name -> type of each parameter that a config may set, as in `goca.schema`
    from_config      default values of parameters that depend on the config
    works_on         the size of the maps that it accepts: "grid" (the config's) or "any"
    leaves           the size of the maps that it returns: "grid", "image" (the image's own), or "same" as before
    along_space_map  whether it needs the config's self_layers
    competes         whether its maps compete at each pixel, so that the background needs a map of its own
    """

    apply: Apply
    parameters: Mapping[str, Any]
    from_config: Mapping[str, Callable[[ChainConfig], Any]] = field(default_factory=dict)
    works_on: str = "any"
    leaves: str = "same"
    along_space_map: bool = False
    competes: bool = False


ORDER: dict[str, Callable[[ChainConfig], Any]] = {"order": lambda config: config.affinity_order}
REFINEMENTS: dict[str, Refinement] = {
    "affinity": Refinement(on_space_map(affinity), {"order": int}, ORDER, works_on="grid", along_space_map=True),
    "activation_affinity": Refinement(
        on_dense(activation_affinity), {"layer": str, "order": int}, ORDER, works_on="grid"
    ),
    "merge_maps": Refinement(
        on_space_map(merge_maps),
        {"threshold": float, "stride": int, "rounds": int},
        works_on="grid",
        along_space_map=True,
    ),
    "prototypes": Refinement(
        on_dense(prototypes),
        {"layer": str, "size": int | tuple[int, int] | str},
        {"size": lambda config: config.grid},
        leaves="grid",
    ),
    "pamr": Refinement(
        on_image(filtered_pamr), {"iterations": int, "dilations": Sequence[int], "window": int}, leaves="image"
    ),
    "dense_crf": Refinement(
        on_image(dense_crf),
        {
            "protocol": str,
            "iterations": int,
            "gaussian_sxy": float,
            "gaussian_compat": float,
            "bilateral_sxy": float,
            "bilateral_srgb": float,
            "bilateral_compat": float,
        },
        {"protocol": nearest_preset},
        leaves="image",
        competes=True,
    ),
    "median": Refinement(on_scores(median), {"window": int}),
    "rescaling": Refinement(on_scores(rescale_scores), {"rule": Annotated[str, OneOf(RESCALE_RULES)]}),
}


@dataclass(frozen=True)
class Step:
    """One step of a chain: a name in REFINEMENTS and the parameters that the config sets."""

    name: str
    parameters: Mapping[str, Any]

    @property
    def layer(self) -> str | None:
        """The dense feature that the step needs, by its name in the config."""
        return self.parameters.get("layer")

    @property
    def refinement(self) -> Refinement:
        return REFINEMENTS[self.name]

    @classmethod
    def of(cls, step: Any) -> Step:
        """From a name, or a mapping of one name to its parameters. Raises ChainError."""
        if isinstance(step, Mapping) and len(step) == 1:
            name, parameters = next(iter(step.items()))
        else:
            name, parameters = step, {}
        if not isinstance(name, str) or not isinstance(parameters := parameters or {}, Mapping):
            raise ChainError(f"refine: {shown(step)} is not a step; expected a name, or {{name: {{parameter: value}}}}")
        if name not in REFINEMENTS:
            near, known = nearest(name, REFINEMENTS), ", ".join(REFINEMENTS)
            raise ChainError(f"refine: unknown step {shown(name)} (nearest: {near}); expected one of: {known}")
        types = REFINEMENTS[name].parameters
        if unknown := [each for each in parameters if each not in types]:
            known = ", ".join(types)
            raise ChainError(f"refine: {name} has no parameter {shown(unknown[0])}; expected one of: {known}")
        if "layer" in types and not isinstance(parameters.get("layer"), str):
            raise ChainError(f"refine: {name} needs a dense feature: {name}: {{layer: LAYER_ID}}")
        for key, value in parameters.items():
            if wrong := refusal(types[key], value, f"{name}.{key}"):
                raise ChainError(f"refine: {wrong}")
        return cls(name, dict(parameters))

    def plain(self) -> str | dict[str, dict[str, Any]]:
        """The step in the form of a config."""
        return {self.name: dict(self.parameters)} if self.parameters else self.name

    def __call__(self, scores: Tensor, inputs: RefinementInputs, config: ChainConfig) -> Tensor:
        defaults = {name: value(config) for name, value in self.refinement.from_config.items()}
        return self.refinement.apply(self.name, scores, inputs, **defaults | dict(self.parameters))


def read_chain(chain: Any) -> tuple[Step, ...]:
    """The steps of a chain: a name, or a list of steps. Raises ChainError, also for an impossible order."""
    if not isinstance(chain, str | Mapping | Sequence):
        raise ChainError(f"refine is {shown(chain)}; expected a list of steps from: {', '.join(REFINEMENTS)}")
    steps = tuple(Step.of(each) for each in ([chain] if isinstance(chain, str | Mapping) else chain))
    enlarging = None  # the last step that returned maps at the image's size
    for step in steps:
        if step.refinement.works_on == "grid" and enlarging:
            raise ChainError(
                f"refine: {step.name} works on the grid, but {enlarging.name} before it returns maps at the image's "
                f"size; put {step.name} first"
            )
        if step.refinement.leaves != "same":
            enlarging = step if step.refinement.leaves == "image" else None
    return steps


def run_chain(scores: Tensor, config: ChainConfig, inputs: RefinementInputs) -> Tensor:
    """Apply every step of the config to the scores   [n, g, g] -> [n, g, g], or [n, H, W] at the image's size"""
    for step in config.steps:
        scores = step(scores, inputs, config)
    return scores
