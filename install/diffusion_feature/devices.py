"""Devices and dtypes in which modules compute, and offloading as in diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.errors import ExtractorError

ORDER = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")  # in which parts are used; the denoiser comes last

WHOLE = ("HunyuanDiTAttentionPool",)  # modules that use their layers' weights without calling the layers


def submodules(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all modules in it, each once, in no particular order.

    `module.modules()` makes every path on its way, which takes about ten times as long.
    """
    seen, waiting = {id(module)}, [module]
    while waiting:
        each = waiting.pop()
        yield each
        for child in each._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes: its weights' device, or the one that offloading moves them to."""
    device = next(module.parameters()).device
    hooked = submodules(module) if device.type == "meta" else [module]
    found = (getattr(getattr(each, "_hf_hook", None), "execution_device", None) for each in hooked)
    return torch.device(next((place for place in found if place is not None), device))


def like(module: nn.Module) -> Tensor:
    """An empty tensor with the device and dtype in which the module computes: `tensor.to(like(module))`."""
    return torch.empty(0, device=device_of(module), dtype=dtype_of(module))


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype in which a module computes, also with fp8 or 4-bit storage."""
    if hasattr(type(module), "enable_layerwise_casting") and (stored := stored_dtype(module)) is not None:
        return stored
    found = getattr(module, "dtype", None)  # diffusers and transformers see to it
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def stored_dtype(module: nn.Module) -> torch.dtype | None:
    """The `dtype` of a diffusers model without layerwise casting, without its slow walk; None: ask the model."""
    if any("_diffusers_hook" in vars(each) for each in submodules(module)):
        return None
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    weights = (weight for path, weight in module.named_parameters() if not any(name in path for name in kept))
    return next((weight.dtype for weight in weights if weight.is_floating_point()), None)


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All weights in that type, as if it had been read so: what its class keeps in float32 (T5's last layers, which
    overflow in float16) stays there."""
    kept = kept_in_float32(module, dtype)
    if not kept:
        return module.to(dtype)
    for path, weight in [*module.named_parameters(), *module.named_buffers()]:
        if weight.is_floating_point():
            weight.data = weight.data.to(torch.float32 if kept.intersection(path.split(".")) else dtype)
    return module


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Names of modules that its class keeps in float32 when it is read in that type."""
    always, half = ("_keep_in_fp32_modules_strict",), ("_keep_in_fp32_modules",)
    listed = {torch.float16: always + half, torch.bfloat16: always}.get(dtype, ())
    return {name for each in listed for name in getattr(module, each, None) or ()}


def offload_whole(parts: Sequence[nn.Module], device: torch.device) -> None:
    """Each part is on the device from its first use until the next one's."""
    from accelerate import cpu_offload_with_hook

    previous = None
    for part in parts:
        _, previous = cpu_offload_with_hook(part, device, prev_module_hook=previous)


def offload_layers(parts: Sequence[nn.Module], device: torch.device) -> None:
    """Each layer's weights are on the device while it computes."""
    from accelerate import cpu_offload

    for part in parts:
        cpu_offload(part, device, offload_buffers=len(part._parameters) > 0, preload_module_classes=[*WHOLE])


OFFLOADS: dict[str, Callable[[Sequence[nn.Module], torch.device], None]] = {
    "model": offload_whole,
    "sequential": offload_layers,
}


def offload(parts: Mapping[str, Any], denoiser: str, mode: str, device: torch.device) -> None:
    """Keep the modules among the parts on the CPU, and move them to the device when they are used.

    mode     "model": a part at a time, little slower; "sequential": a layer at a time, least memory
    errors   ExtractorError for another mode
    """
    if mode not in OFFLOADS:
        raise ExtractorError(f"unknown offload {mode!r}; expected one of: {', '.join(OFFLOADS)}")
    used = [parts[name] for name in (*ORDER, denoiser) if isinstance(parts.get(name), nn.Module)]
    OFFLOADS[mode](used, device)
