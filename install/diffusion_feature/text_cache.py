"""Encoded prompts, kept while nothing that made them has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import Conditioning, Parts
from diffusion_feature.devices import device_of, dtype_of, submodules

ENTRIES = 64  # batches of prompts that are kept
BYTES = 64 << 20  # of their tensors together
PROBED = 16  # elements of each weight whose values are compared
ADAPTED = ("lora_A", "base_layer", "parametrizations", "_hf_hook", "_diffusers_hook")  # what makes a module more than
# its stored weights: adapters, and hooks that move or cast them


class TextCache:
    """Calls `encode(parts, prompts)` for prompts that are new, or whose encoders are no longer what they were.

    denoiser   name of the part whose device and dtype states are converted to; its weights play no role

    An encoder counts as changed where a weight is another tensor, was changed in place (torch counts that), or where
    any of a few elements of each weight has another value, which also finds adapters that were merged into it. Nothing
    is kept while an encoder has adapters, hooks or offloaded weights. What is not noticed: single elements that are
    changed through `.data`; call `clear` after that.
    """

    def __init__(self, denoiser: str):
        self.denoiser = denoiser
        self.kept: OrderedDict[tuple[str, ...], Conditioning] = OrderedDict()
        self.marks: tuple[Any, ...] | None = None
        self.probe: Tensor | None = None

    def __call__(
        self, encode: Callable[[Parts, list[str]], Conditioning], parts: Parts, prompts: list[str]
    ) -> Conditioning:
        if not self._unchanged(encode, parts):
            self.clear()
            return encode(parts, prompts)
        key = tuple(prompts)
        if key not in self.kept:
            self.kept[key] = encode(parts, prompts)
        self.kept.move_to_end(key)
        found = self.kept[key]
        while len(self.kept) > ENTRIES or sum(map(nbytes, self.kept.values())) > BYTES:
            self.kept.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all encodings."""
        self.kept.clear()

    def _unchanged(self, encode: Any, parts: Parts) -> bool:
        """Whether encodings can be kept; those of changed encoders are forgotten."""
        others = {name: part for name, part in parts.items() if name not in (self.denoiser, "vae", "scheduler")}
        encoders = {name: part for name, part in others.items() if isinstance(part, nn.Module)}
        weights = [weight for part in encoders.values() for weight in weights_of(part)]
        if any(weight is None or weight.is_meta or weight.is_inference() for weight in weights):
            return False
        denoiser, held = parts[self.denoiser], [weight for weight in weights if weight is not None]
        marks = (
            encode,
            device_of(denoiser),
            dtype_of(denoiser),
            *((name, id(part), len(part) if hasattr(part, "__len__") else 0) for name, part in others.items()),
            *((id(each), each.data_ptr(), each._version, each.dtype, each.device) for each in held),
        )
        probe = probe_of(held)
        if self.probe is None or marks != self.marks or not torch.equal(probe, self.probe):
            self.clear()
        self.marks, self.probe = marks, probe
        return True


def weights_of(module: nn.Module) -> Iterator[Tensor | None]:
    """Parameters and buffers; None for one of a special type (quantised), and for a module that does more with them."""
    for each in submodules(module):
        own = vars(each)
        adapted = any(name in own or name in each._modules for name in ADAPTED)
        if adapted or each._forward_hooks or each._forward_pre_hooks or "forward" in own:
            yield None
        stored = (weight for weight in (*each._parameters.values(), *each._buffers.values()) if weight is not None)
        yield from (weight if type(weight) in (Tensor, nn.Parameter) else None for weight in stored)


def probe_of(weights: Sequence[Tensor]) -> Tensor:
    """A few elements of each weight, evenly spaced   [n] float64, copied to the CPU once per device"""
    found: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        flat = weight.detach()
        flat = flat.view(-1) if flat.is_contiguous() else flat[(0,) * (flat.ndim - 1)]
        found.setdefault(weight.device, []).append(flat[:: max(1, -(-len(flat) // PROBED))].double())
    return torch.cat([torch.empty(0, dtype=torch.float64), *(torch.cat(each).cpu() for each in found.values())])


def nbytes(conditioning: Conditioning) -> int:
    """Memory of its tensors."""
    values = list(conditioning.arguments.values())
    values += [each for value in values if isinstance(value, dict) for each in value.values()]
    return sum(each.nbytes for each in values if isinstance(each, Tensor))
