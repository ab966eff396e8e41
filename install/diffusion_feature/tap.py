"""The attention tap: observes every scaled_dot_product_attention call in a denoiser's forward pass, unchanged.

A forward pre-hook on each attention module records which module runs; while it runs, a TorchFunctionMode sees the call
that computes the probabilities, after q/k norms and rotary embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_feature.attention import LAYOUTS, Attention, grid_of
from diffusion_feature.backbone import JOINT, REMEDY, AttentionLayer, DenseFeature
from diffusion_feature.errors import AttentionNotSeen

# kind of attention processor -> its remedy, if it is not torch's own attention
SPECIAL = {
    "PAG": "Perturbed attention is computed twice: call the pipeline with `pag_scale=0`.",
    "Sliced": "Attention slicing: `pipe.disable_attention_slicing()`.",
    "XFormers": "xformers: `pipe.disable_xformers_memory_efficient_attention()`.",
}
NOT_FINITE = (
    "the model's own output holds nan or inf: it overflows in {dtype}, or its weights are damaged. Load it in bfloat16 "
    "or float32: `pipe.to(torch.float32)`"
)
REBUILT_ROWS = 16  # queries of one layer whose output is recomputed from q, k and the mask
REBUILT_WITHIN = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative to the largest output; 16-bit: 2e-2


class Consumer(Protocol):
    """Receives the attentions and dense features of one forward pass, in order."""

    @property
    def features(self) -> Collection[str]: ...  # ids of the dense features that it receives

    def attention(self, attention: Attention) -> None: ...

    def feature(self, layer: str, feature: Tensor) -> None: ...


class ConsumerGroup:
    """Several consumers of one forward pass; each receives the features that it asks for."""

    def __init__(self, consumers: Sequence[Consumer]):
        self.consumers = consumers
        self.features = tuple(dict.fromkeys(name for consumer in consumers for name in consumer.features))

    def attention(self, attention: Attention) -> None:
        for consumer in self.consumers:
            consumer.attention(attention)

    def feature(self, layer: str, feature: Tensor) -> None:
        for consumer in self.consumers:
            if layer in consumer.features:
                consumer.feature(layer, feature)


class AttentionTap(TorchFunctionMode):
    """`with AttentionTap(layers, features, consumer, latents=(h, w)): denoiser(...)`.

    patch   joint attention: side of an image token, in latent pixels
    remedy  how to restore torch's own attention, for messages
    beside  joint attention: number of tokens after the image's, such as those of a reference image

    At the end of the block, AttentionNotSeen is raised unless every attention module was seen exactly once.
    """

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        features: Mapping[str, DenseFeature],
        consumer: Consumer,
        latents: tuple[int, int],
        patch: int = 1,
        beside: int = 0,
        remedy: str = REMEDY,
    ):
        super().__init__()
        self.layers, self.features, self.consumer, self.latents = layers, features, consumer, latents
        self.patch, self.beside, self.remedy = patch, beside, remedy
        self.asking: AttentionLayer | None = None
        self.seen: Counter[tuple[str, str]] = Counter()
        self.passed: set[str] = set()
        self.rebuilt = False
        self.hooks: list[Any] = []

    def __enter__(self) -> AttentionTap:  # type: ignore[override]
        refuse_compiled(self.layers, self.remedy)
        for layer in self.layers:
            self.hooks.append(layer.module.register_forward_pre_hook(self._asks(layer)))
            self.hooks.append(layer.module.register_forward_hook(self._answered, always_call=True))
        for name in self.consumer.features:
            module, hook = self.features[name].module, self._passes(name)
            before = self.features[name].before
            self.hooks.append(module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._rest()  # after Ctrl-C inside a module, its hooks do not run
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        if kind is None:
            self._audit()

    def _asks(self, layer: AttentionLayer):
        def hook(module: nn.Module, args: Any) -> None:
            self.asking = layer
            super(AttentionTap, self).__enter__()  # the mode is on only while an attention module runs

        return hook

    def _answered(self, module: nn.Module, args: Any, output: Any) -> None:
        self._rest()

    def _rest(self) -> None:
        if self.asking is not None:
            self.asking = None
            super().__exit__(None, None, None)

    def _passes(self, name: str):
        def hook(module: nn.Module, args: Any, output: Any = None) -> None:
            self.passed.add(name)
            feature = self.features[name]
            self.consumer.feature(name, self._spatial(args[0] if feature.before else output, feature))

        return hook

    def _spatial(self, output: Any, feature: DenseFeature) -> Tensor:
        tensor = output[feature.part] if isinstance(output, tuple) else getattr(output, "sample", output)
        if feature.tokens == "text" or tensor.ndim == 4:
            return tensor
        tensor = tensor[..., : feature.channels]
        tensor = tensor[:, : tensor.shape[1] - self.beside]
        h, w = self._grid(tensor.shape[1], feature.tokens)
        if feature.tokens in JOINT:
            tensor = tensor[:, LAYOUTS[feature.tokens](h * w, tensor.shape[1])["image_queries"]]
        return tensor.transpose(1, 2).unflatten(2, (h, w))  # [B, C, h, w]

    def _grid(self, tokens: int, layout: str) -> tuple[int, int]:
        """(rows, columns) of the image tokens, from the number of tokens."""
        if layout not in JOINT:
            return grid_of(tokens, self.latents)
        h, w = (side // self.patch for side in self.latents)
        if h * w >= tokens:
            raise AttentionNotSeen(f"{tokens} tokens are too few for {h} x {w} image tokens and a text")
        return h, w

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self.asking is not None:
            self._see(self.asking, result, *args, **(kwargs or {}))
        return result

    def _see(
        self,
        layer,
        result,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ) -> None:
        if is_causal or key.shape[1] != query.shape[1]:
            raise AttentionNotSeen(f"{layer.block}: causal or grouped attention cannot be read as image attention")
        if layer.layout in JOINT and key.shape[2] != query.shape[2]:
            raise AttentionNotSeen(
                f"{layer.block}: {query.shape[2]} tokens attend to {key.shape[2]}, some of which were computed before "
                "(a cache of another image's keys and values?); generate without it"
            )
        self.seen[layer.block, layer.layout] += 1
        if self.seen[layer.block, layer.layout] > 1:
            raise self._not_once([layer])
        h, w = self._grid(query.shape[2] - self.beside, layer.layout)
        tokens = LAYOUTS[layer.layout](h * w, key.shape[2] - self.beside, layer.own(h * w))
        attention = Attention(layer, query, key, value, attn_mask, scale, result, (h, w), **tokens)
        if not self.rebuilt and attention.text_keys is not None:
            check_rebuilt(attention, self.remedy)
            self.rebuilt = True
        self.consumer.attention(attention)

    def _not_once(self, wrong: Sequence[AttentionLayer]) -> AttentionNotSeen:
        first = wrong[0]
        processor = type(getattr(first.module, "processor", first.module)).__name__
        special = next((line for kind, line in SPECIAL.items() if kind in processor), self.remedy)
        count = self.seen[first.block, first.layout]
        return AttentionNotSeen(
            f"{len(wrong)} of {len(self.layers)} attention modules were not seen exactly once in one forward "
            f"(first: {first.maps[0]}, seen {count} times, processor {processor}). {special}"
        )

    def _audit(self) -> None:
        wrong = [layer for layer in self.layers if self.seen[layer.block, layer.layout] != 1]
        if wrong:
            raise self._not_once(wrong)
        if absent := set(self.consumer.features) - self.passed:
            raise AttentionNotSeen(
                f"{min(absent)} was not computed as a module of its own (fused projections? "
                f"`denoiser.unfuse_qkv_projections()` undoes them). {self.remedy}"
            )


def refuse_compiled(layers: Sequence[AttentionLayer], remedy: str = REMEDY) -> None:
    for layer in layers:
        if getattr(layer.module, "_compiled_call_impl", None) is not None:
            raise AttentionNotSeen(f"{layer.block} is compiled, so its attention cannot be seen. {remedy}")


def check_rebuilt(attention: Attention, remedy: str = REMEDY) -> None:
    """Check that probabilities recomputed from q, k and mask reproduce the output, on the first queries."""
    rows = slice(0, REBUILT_ROWS)
    assert attention.value is not None and attention.result is not None
    ours = attention.probabilities(rows) @ attention.value.float()
    theirs = attention.result[:, :, rows].float()
    if not theirs.isfinite().all():
        dtype = str(attention.query.dtype).removeprefix("torch.")
        raise AttentionNotSeen(f"{attention.layer.block}: {NOT_FINITE.format(dtype=dtype)}")
    error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    if not error <= REBUILT_WITHIN.get(attention.query.dtype, 2e-2):
        raise AttentionNotSeen(
            f"{attention.layer.block}: the output rebuilt from queries and keys differs from the model's by "
            f"{error:.1e} of its largest value. {remedy}"
        )
