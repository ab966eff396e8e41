"""Chains of refinements as data: `refine: [affinity, {dense_crf: {iterations: 5}}]` in a model config.

Steps run in the order given. Scores start on the config's grid (feat_size); REFINEMENTS says for each step
on which grid it works and which it leaves behind. The background's map, the last one, takes part in every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from torch import Tensor

from goca.method.rescaling import RESCALE_RULES, rescale_scores
from goca.protocol import PRESETS, Protocol
from goca.refine.affinity import activation_affinity, affinity
from goca.refine.crf import dense_crf
from goca.refine.errors import ChainError, MapNotCaptured, PictureMissing, RefineError
from goca.refine.merging import merge_maps
from goca.refine.pamr import filtered_pamr, median
from goca.refine.prototypes import prototypes
from goca.schema import nearest, refusal, shown

if TYPE_CHECKING:
    from goca.config import SegmenterConfig
    from goca.method.summary import AttentionSummary


@dataclass(frozen=True)
class Sources:
    """What steps may look at besides the scores: one picture of a capture, and the picture itself.

    layers   a step's layer -> its id in the capture, where that is another one (`vit-block{1/2}-attn-out`)
    """

    capture: AttentionSummary | None
    number: int = 0
    image: Any = None
    layers: Mapping[str, str] = field(default_factory=dict)

    def space_map(self, step: Step) -> Tensor:
        space = None if self.capture is None else self.capture.space_map()
        if space is None:
            raise MapNotCaptured(f"{step.name} moves scores along the space map, and self_layers names no map for it")
        return space[self.number]

    def picture(self, step: Step) -> Any:
        if self.image is None:
            raise PictureMissing(f"{step.name} looks at the picture, and there is none: pass it, or leave the step out")
        return self.image

    def dense(self, step: Step) -> Tensor:
        found = {} if self.capture is None else self.capture.dense
        layer = self.layers.get(step.layer, step.layer)
        if layer not in found:
            kept = ", ".join(found) or "none"
            raise MapNotCaptured(f"{step.name} needs the feature {step.layer!r}, which was not captured (kept: {kept})")
        if found[layer].ndim != 4:
            raise RefineError(f"{step.name}: {step.layer!r} is a feature of the text; expected one of the image")
        return found[layer][self.number]


@dataclass(frozen=True)
class Refinement:
    """One kind of step.

    function  (scores, *needs, **parameters) -> scores
    needs     methods of Sources, in the order of the function's arguments
    works_on  "grid": only on maps of the config's grid;  "any"
    leaves    "grid", "picture" (the picture's own size), or "same" as before
    settings  parameters that the config gives where the step does not
    choices   the values that a parameter can have, where they are names
    """

    function: Callable[..., Tensor]
    needs: tuple[str, ...] = ()
    works_on: str = "any"
    leaves: str = "same"
    settings: Mapping[str, Callable[[SegmenterConfig], Any]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parameters(self) -> list[str]:
        """The names that a step may set; `layer` is the dense feature's id."""
        own = list(inspect.signature(self.function).parameters)[1 + len(self.needs) :]
        return ["layer", *own] if "dense" in self.needs else own


def nearest_preset(config: SegmenterConfig) -> str:
    """The preset with which the config's protocol shares more switches; `paper` if as many."""
    ours = config.protocol.to_dict().items()
    return max(PRESETS, key=lambda name: len(ours & Protocol.of(name).to_dict().items()))


REFINEMENTS: dict[str, Refinement] = {
    "affinity": Refinement(affinity, ("space_map",), "grid", settings={"order": lambda c: c.affinity_order}),
    "activation_affinity": Refinement(
        activation_affinity, ("dense",), "grid", settings={"order": lambda c: c.affinity_order}
    ),
    "merge_maps": Refinement(merge_maps, ("space_map",), "grid"),
    "prototypes": Refinement(prototypes, ("dense",), leaves="grid", settings={"size": lambda c: c.grid}),
    "pamr": Refinement(filtered_pamr, ("picture",), leaves="picture"),
    "dense_crf": Refinement(dense_crf, ("picture",), leaves="picture", settings={"protocol": nearest_preset}),
    "median": Refinement(median),
    "rescaling": Refinement(rescale_scores, choices={"rule": tuple(RESCALE_RULES)}),
}


@dataclass(frozen=True)
class Step:
    """One step of a chain: a name of REFINEMENTS, and parameters of it."""

    name: str
    parameters: Mapping[str, Any]

    @property
    def layer(self) -> Any:
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
            raise ChainError(f"refine: {shown(step)} is no step; expected a name, or {{name: {{parameter: value}}}}")
        if name not in REFINEMENTS:
            near = nearest(name, REFINEMENTS)
            raise ChainError(f"refine: no step {shown(name)} (nearest: {near}); there are: {', '.join(REFINEMENTS)}")
        known = REFINEMENTS[name].parameters
        if unknown := [each for each in parameters if each not in known]:
            there = ", ".join(known) or "none"
            raise ChainError(f"refine: {name} has no parameter {shown(unknown[0])}; there are: {there}")
        if "layer" in known and not isinstance(parameters.get("layer"), str):
            raise ChainError(f"refine: {name} needs a dense feature: {name}: {{layer: LAYER_ID}}")
        types = get_type_hints(REFINEMENTS[name].function)
        for key, value in parameters.items():
            if wrong := refusal(types.get(key, Any), value, f"{name}.{key}"):
                raise ChainError(f"refine: {wrong}")
        for parameter, allowed in REFINEMENTS[name].choices.items():
            if (value := parameters.get(parameter)) is not None and value not in allowed:
                there = ", ".join(allowed)
                raise ChainError(f"refine: {name}.{parameter} is {shown(value)}; it can be one of: {there}")
        return cls(name, dict(parameters))

    def plain(self) -> str | dict[str, dict[str, Any]]:
        """As a config says it."""
        return {self.name: dict(self.parameters)} if self.parameters else self.name

    def __call__(self, scores: Tensor, sources: Sources, config: SegmenterConfig) -> Tensor:
        kind = self.refinement
        given = (getattr(sources, need)(self) for need in kind.needs)
        parameters = {name: of(config) for name, of in kind.settings.items()} | dict(self.parameters)
        parameters.pop("layer", None)
        return kind.function(scores, *given, **parameters)


def read_chain(chain: Any) -> tuple[Step, ...]:
    """The steps of a chain: a name, or a list of steps. Raises ChainError, also for an order that cannot work."""
    if not isinstance(chain, str | Mapping | Sequence):
        raise ChainError(f"refine is {shown(chain)}; expected a list of steps out of: {', '.join(REFINEMENTS)}")
    steps = tuple(Step.of(each) for each in ([chain] if isinstance(chain, str | Mapping) else chain))
    left = None  # the step that left maps at the picture's size
    for step in steps:
        if step.refinement.works_on == "grid" and left:
            raise ChainError(
                f"refine: {step.name} works on the grid, and {left.name} before it leaves maps at the picture's size; "
                f"put {step.name} first"
            )
        if step.refinement.leaves != "same":
            left = step if step.refinement.leaves == "picture" else None
    return steps


def run_chain(scores: Tensor, config: SegmenterConfig, sources: Sources) -> Tensor:
    """Scores [n, g, g] through every step of config.refine -> [n, g, g], or [n, H, W] of the picture."""
    for step in read_chain(config.refine):
        scores = step(scores, sources, config)
    return scores
