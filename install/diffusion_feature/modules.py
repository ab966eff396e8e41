"""Use a pipeline's modules without changing them: every change for a forward pass is undone afterwards."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diffusion_feature.devices import cast, device_of, dtype_of, submodules
from diffusion_feature.errors import ExtractorError


def modules_of(parts: Mapping[str, Any]) -> Iterator[nn.Module]:
    """All modules of the components, with their submodules."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            yield from submodules(part)


@contextmanager
def as_for_inference(parts: Mapping[str, Any]) -> Iterator[None]:
    """Run modules in eval mode and uncompiled."""
    modules = list(modules_of(parts))
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with not_compiled(modules):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def not_compiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules eagerly on which `module.compile()` was called, since a compiled attention cannot be tapped."""
    compiled = [(each, call) for each in modules if (call := getattr(each, "_compiled_call_impl", None)) is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


@contextmanager
def in_float32(module: nn.Module) -> Iterator[bool]:
    """Run a module with float32 weights, and restore the original tensors. Yields False where that is impossible."""
    tensors = [each for each in itertools.chain(module.parameters(), module.buffers()) if each.is_floating_point()]
    if is_managed(module) or any(each.is_meta for each in tensors):
        yield False
        return
    own = [(each, each.data) for each in tensors if each.dtype != torch.float32]
    try:
        for each, data in own:
            each.data = data.float()
        yield True
    finally:
        for each, data in own:
            each.data = data


def is_managed(module: nn.Module) -> bool:
    """Whether diffusers' hooks move or cast its weights while it runs."""
    return any(hasattr(each, "_diffusers_hook") for each in module.modules())


def is_quantised(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit"))


def own_copy(name: str, part: Any, device: torch.device | None, dtype: torch.dtype | None, offloaded: bool) -> Any:
    """A pipeline's part, or a copy of it where it has to be on another device, of another type, or offloaded.

    errors   ExtractorError for a part that cannot be copied so: it is offloaded or quantised
    """
    if not isinstance(part, nn.Module):
        return part
    moved = device is not None and not is_on(device_of(part), device)
    retyped = dtype is not None and dtype_of(part) != dtype
    if not (moved or retyped or offloaded):
        return part
    wish = f"device={str(device)!r}" if moved else "offload" if offloaded else f"dtype={str(dtype)[6:]!r}"
    if is_managed(part) or any(hasattr(each, "_hf_hook") for each in part.modules()):
        raise ExtractorError(
            f"{wish} cannot be had of this pipeline: hooks move or cast the weights of its {name!r} already. Leave "
            "device, dtype and offload out, or give the folder or hub id"
        )
    if is_quantised(part) and retyped:
        raise ExtractorError(f"{wish} cannot be had of this pipeline: its {name!r} is quantised; leave dtype out")
    made = copy.deepcopy(part)
    made = made.to(device) if moved else made
    return cast(made, dtype) if retyped and dtype is not None else made


def is_on(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and wanted.index in (None, found.index)


WRAPPERS = ("_orig_mod", "base_model.model")  # where torch.compile(module) and peft's PeftModel hold what they wrap


def wrapper_of(part: Any) -> str | None:
    """Attribute path from a wrapper to the wrapped module; None if `part` is not a wrapper."""
    if not isinstance(part, nn.Module):
        return None
    kind = type(part).__name__
    return WRAPPERS[0] if kind == "OptimizedModule" else WRAPPERS[1] if kind.startswith("PeftM") else None


def unwrapped(part: Any) -> Any:
    """The module inside a compiled or peft wrapper (its adapters stay), or the module itself."""
    path = wrapper_of(part)
    return part if path is None else unwrapped(operator.attrgetter(path)(part))
