"""Run all attention layers of a model one by one, as full-size modules with random weights.

The model's shapes come from a forward pass on the meta device, without weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from diffusion_feature import Attention
from diffusion_feature.backbone import AttentionLayer
from diffusion_feature.tap import AttentionTap
from torch import Tensor, nn

from benchmarks.denoisers import Denoiser

Kind = tuple[Any, ...]


class Shapes:
    """A consumer that records the order of attentions and the reference feature."""

    def __init__(self, reference: str):
        self.features = (reference,)
        self.passed: list[tuple[AttentionLayer, int, int] | tuple[int, ...]] = []  # layer, queries, keys; or a shape

    def attention(self, attention: Attention) -> None:
        self.passed.append((attention.layer, attention.query.shape[2], attention.key.shape[2]))

    def feature(self, layer: str, feature: Tensor) -> None:
        self.passed.append(tuple(feature.shape))


class Single:
    """A consumer of attentions only; the reference comes from the replay."""

    features = ()

    def __init__(self, consumer: Any):
        self.attention, self.feature = consumer.attention, consumer.feature


class Replay:
    """A forward pass of attention modules only. Layers of the same kind share a module, but have their own q, k, v."""

    def __init__(self, denoiser: Denoiser, device: torch.device):
        self.denoiser, self.device = denoiser, device
        denoiser.device = device
        shapes = Shapes(denoiser.plan().reference)
        with AttentionTap(denoiser.layers, denoiser.features, shapes, denoiser.latents, denoiser.patch) as tap:
            tap.rebuilt = True  # there are no numbers to rebuild
            with torch.device("meta"):
                denoiser.forward({name: to_meta(value) for name, value in denoiser.inputs().items()})
        self.passed = shapes.passed
        self.modules: dict[Kind, tuple[nn.Module, dict[str, Tensor]]] = {}
        for step in self.passed:
            if isinstance(step[0], AttentionLayer):
                self.modules.setdefault(kind_of(*step), self.made(*step))
            else:
                self.reference = torch.randn(step, device=device, dtype=denoiser.model.dtype)

    def made(self, layer: AttentionLayer, queries: int, keys: int) -> tuple[nn.Module, dict[str, Tensor]]:
        """A module with weights, and its inputs."""
        meta: Any = layer.module
        if kind_of(layer, queries, keys) in self.modules:
            return self.modules[kind_of(layer, queries, keys)]
        module: Any = copy.deepcopy(meta).to_empty(device=self.device)
        for weight in module.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5) if weight.ndim > 1 else nn.init.ones_(weight)
        split = getattr(module, "add_k_proj", None)  # joint attention with a stream for the text
        image = self.denoiser.latents[0] * self.denoiser.latents[1] // self.denoiser.patch**2
        shapes = {"hidden_states": (1, image if split else queries, module.to_q.in_features)}
        if split:
            shapes["encoder_hidden_states"] = (1, keys - image, split.in_features)
        elif layer.layout == "cross":
            shapes["encoder_hidden_states"] = (1, keys, module.to_k.in_features)
        dtype = self.denoiser.model.dtype
        return module, {name: torch.randn(shape, device=self.device, dtype=dtype) for name, shape in shapes.items()}

    def __call__(self, consumer: Any) -> None:
        for step in self.passed:
            if isinstance(step[0], AttentionLayer):
                self.run(*step, consumer)
            elif consumer is not None:
                consumer.feature(self.denoiser.plan().reference, self.reference)

    def run(self, layer: AttentionLayer, queries: int, keys: int, consumer: Any) -> None:
        module, inputs = self.modules[kind_of(layer, queries, keys)]
        if consumer is None:
            module(**inputs)
            return
        seen = dataclasses.replace(layer, module=module, out_proj=lambda: projection(module))
        with AttentionTap([seen], {}, Single(consumer), self.denoiser.latents, self.denoiser.patch) as tap:
            tap.rebuilt = True  # once per forward in a whole model
            module(**inputs)

    def kinds(self) -> Iterator[Kind]:
        """Of each layer."""
        for step in self.passed:
            if isinstance(step[0], AttentionLayer):
                yield kind_of(*step)

    def one(self, kind: Kind, consumer: Any) -> None:
        """The first layer of a kind."""
        self.run(
            *next(step for step in self.passed if isinstance(step[0], AttentionLayer) and kind_of(*step) == kind),
            consumer,
        )


def projection(module: Any) -> Tensor:
    return module.to_out[0].weight if getattr(module, "to_out", None) is not None else torch.empty(0)


def kind_of(layer: AttentionLayer, queries: int, keys: int) -> Kind:
    module: Any = layer.module
    return layer.layout, layer.weighed, queries, keys, module.heads, module.to_q.in_features


def to_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: to_meta(each) for name, each in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value
