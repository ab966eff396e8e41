"""The effective weight of a linear layer: with adapters, dequantised, also while it is offloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.devices import device_of
from diffusion_feature.errors import ExtractorError

PROBE = 1024.0  # what a column is asked with: a power of two, so large that adding the bias costs no digits
COLUMNS = 512  # asked at once
LINEAR_WITHIN = 3e-2  # of the largest output; inputs that are rounded to 8 bits, or 16, differ by less


@torch.no_grad()
def weight_of(module: nn.Module) -> Tensor:
    """W of a linear layer: module(x) = W x + bias   [D, C]

    Stored, for a plain `nn.Linear`. Anything else (LoRA and other adapters, 4-bit, 8-bit and GGUF weights, a patched
    forward) is asked for its columns: module(e_c) - module(0).
    errors   ExtractorError where the module is not linear
    """
    return stored(module) if is_plain(module) else probed(module)


def is_plain(module: nn.Module) -> bool:
    """Whether it is an `nn.Linear` that applies its stored weight, be it offloaded or not."""
    if type(module) is not nn.Linear or type(module.weight) not in (Tensor, nn.Parameter):
        return False
    if module._forward_hooks or module._forward_pre_hooks or not module.weight.is_floating_point():
        return False
    forward: Any = getattr(module, "_old_forward", module.forward)  # beneath accelerate's hook
    if (registry := getattr(module, "_diffusers_hook", None)) is not None:
        return set(registry.hooks) <= {"layerwise_casting", "group_offloading"} and not on_disk(registry)
    return getattr(forward, "__func__", None) is nn.Linear.forward


def on_disk(registry: Any) -> bool:
    """Whether diffusers' group offloading keeps the weights in files, and nothing in their place."""
    group = getattr(registry.hooks.get("group_offloading"), "group", None)
    return getattr(group, "offload_to_disk_path", None) is not None


def stored(module: Any) -> Tensor:
    """The stored weight, also of an offloaded layer."""
    hook: Any = getattr(module, "_hf_hook", None)
    if module.weight.device.type != "meta" or hook is None:
        return module.weight
    return hook.weights_map["weight"].to(hook.execution_device)


def probed(module: nn.Module) -> Tensor:
    """W from the outputs for unit vectors, in float32, verified on random vectors   [D, C]"""
    if (width := getattr(module, "in_features", None)) is None:
        raise ExtractorError(f"a {type(module).__name__} has no in_features: it is not a linear layer with a weight")
    device, refusals = device_of(module), []
    for dtype in input_types(module):
        try:
            with unchanged(module):
                bias = module(torch.zeros(1, width, device=device, dtype=dtype)).float()
                columns = [(module(rows).float() - bias) / PROBE for rows in unit_rows(width, device, dtype)]
                weight = torch.cat(columns).T.contiguous()
                check_linear(module, weight, bias, dtype)
            return weight
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # inputs of another type than its own
            refusals.append(str(error))
    raise ExtractorError(f"a {type(module).__name__} cannot be asked for its weight: {refusals[0]}")


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the module's dtypes afterwards, since bitsandbytes adopts those of its input."""
    settings = [
        (each, {name: value for name, value in vars(each).items() if isinstance(value, bool | torch.dtype)})
        for each in module.modules()
    ]
    weights = [(weight, weight.dtype, weight.data) for weight in module.parameters()]
    try:
        yield
    finally:
        for each, values in settings:
            vars(each).update(values)
        for weight, dtype, data in weights:
            if weight.dtype != dtype:
                weight.data = data


def unit_rows(width: int, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """PROBE times the unit vectors, in batches   [n, C]"""
    for first in range(0, width, COLUMNS):
        rows = torch.zeros(min(COLUMNS, width - first), width, device=device, dtype=dtype)
        rows.diagonal(first).fill_(PROBE)
        yield rows


def input_types(module: nn.Module) -> list[torch.dtype]:
    """Possible input dtypes, the likeliest first."""
    found = []
    for each in module.modules():
        registry = getattr(each, "_diffusers_hook", None)
        found.append(getattr(registry and registry.get_hook("layerwise_casting"), "compute_dtype", None))
        found.append(getattr(each, "compute_dtype", None))
    found += [weight.dtype for weight in module.parameters()]
    wide = [dtype for dtype in found if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1]
    return list(dict.fromkeys([*wide, torch.float32, torch.float16, torch.bfloat16]))


def check_linear(module: nn.Module, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
    """Check that the module computes W x + bias. Raises ExtractorError."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, dtype)
    theirs = module(x).float()
    error = float((x.float() @ weight.T + bias - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    if not error <= LINEAR_WITHIN:
        raise ExtractorError(
            f"an output projection, a {type(module).__name__}, is not linear: W x + b differs from its output by "
            f"{error:.1e} of the largest value, so heads cannot be weighed by it. Merge its adapters "
            "(`pipe.fuse_lora()`), switch dropout off (`.eval()`), or use head_method='average'"
        )
