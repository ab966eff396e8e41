"""Load a pipeline's components from a folder, a hub id or a pipeline object onto their device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_feature.backbone import Backbone, Parts
from diffusion_feature.devices import offload
from diffusion_feature.errors import DeviceNotFound, ExtractorError, PartMissing
from diffusion_feature.modules import own_copy, unwrapped
from diffusion_feature.reading import all_of, int8, other_denoiser, read_parts, refuse_other, wrong_family


def load_parts(
    pipeline: Any,
    backbone: Backbone,
    device: str | torch.device,
    dtype: str | torch.dtype,
    offloading: str | None = None,
    int8_text: bool = False,
    variant: str | None = "auto",
    denoiser: str | None = None,
    vae_dtype: str | torch.dtype = "auto",
) -> Parts:
    """The components that the family needs, on the device. A pipeline object is never changed: its components are
    copied where another device, dtype or offloading is requested.

    pipeline   a folder written by `save_pretrained`, a hub id, or a pipeline object (scheduler untouched)
    device     "auto": an accelerator where there is one; for a pipeline object: where it is
    dtype      "auto": float32 on a CPU, the family's 16-bit type on an accelerator; for a pipeline object: what it has
    offloading see `devices.offload`;  int8_text  a folder's T5 in 8 bit
    variant    of a folder's weights: "auto", None (the plain files) or a name such as "fp16"; see `repository.chosen`
    denoiser   a second folder or hub id, whose denoiser takes the place of the first one's
    vae_dtype  of a folder's VAE: "auto": as `dtype`, and float32 where its config says `force_upcast`
    errors     PipelineNotFound, PartMissing, WrongFamily, ExtractorError
    """
    read = isinstance(pipeline, str | Path)
    place: torch.device | None = pick_device(device) if read or device != "auto" or offloading else None
    if read:
        kind, t5 = pick_dtype(dtype, place, backbone.half), int8(place) if int8_text else None
        own = None if vae_dtype == "auto" else pick_dtype(vae_dtype, place)
        parts = read_parts(str(pipeline), backbone, kind, t5, variant, denoiser, own)
        if own is not None:
            parts["vae"].register_to_config(force_upcast=False)
    elif int8_text or denoiser or variant != "auto" or vae_dtype != "auto":
        asked = {"int8_text": int8_text, "denoiser": denoiser, "variant": variant != "auto", "vae_dtype": True}
        given = next(name for name, wanted in asked.items() if wanted)
        raise ExtractorError(f"{given} needs a folder or a hub id: a pipeline object's weights are read already")
    else:
        wanted = None if dtype == "auto" else pick_dtype(dtype, place)
        place_now = None if offloading else place
        parts = {
            name: own_copy(name, part, place_now, wanted, bool(offloading))
            for name, part in parts_of(pipeline, backbone).items()
        }
    if read:
        parts = {name: settle(name, part, None if offloading else place) for name, part in parts.items()}
    if offloading:
        offload(parts, backbone.denoiser, offloading, place)  # type: ignore[arg-type]
    return parts


def parts_of(pipeline: Any, backbone: Backbone) -> dict[str, Any]:
    parts = {name: unwrapped(getattr(pipeline, name, None)) for name in backbone.parts}
    found = type(pipeline).__name__
    if parts[backbone.denoiser] is None and (other := other_denoiser(vars(pipeline), backbone)):
        raise wrong_family(f"{found} has a {other}", backbone)
    refuse_other(parts[backbone.denoiser], backbone)
    if absent := [name for name, part in parts.items() if part is None]:
        raise PartMissing(f"{found} has no {absent[0]!r}; {backbone.name} needs: {all_of(backbone)}")
    extra = {name: unwrapped(getattr(pipeline, name, None)) for name in backbone.optional}
    return parts | {name: part for name, part in extra.items() if part is not None}


def settle(name: str, part: Any, device: torch.device | None) -> Any:
    """A module that was read on its device, in eval mode; a VAE that overflows in half precision is in float32."""
    if not isinstance(part, torch.nn.Module):
        return part
    if getattr(part, "is_loaded_in_8bit", False):
        return part.eval()
    if device is not None:
        part = part.to(device)
    if name == "vae" and part.dtype == torch.float16 and getattr(part.config, "force_upcast", False):
        part = part.to(torch.float32)
    return part.eval()


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto": the accelerator that torch finds, else the CPU. Raises DeviceNotFound for one that is not here."""
    if device != "auto":
        try:
            wanted = torch.device(device)
        except (RuntimeError, TypeError):
            raise DeviceNotFound(f"unknown device {device!r}; expected one of: auto, {devices()}") from None
        kind = getattr(torch, wanted.type, None)
        if hasattr(kind, "device_count") and not (wanted.index or 0) < kind.device_count():  # type: ignore[union-attr]
            raise DeviceNotFound(f"there is no device {str(wanted)!r} here; expected one of: auto, {devices()}")
        return wanted
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def devices() -> str:
    """The devices of this machine, as text."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = 0 if accelerator is None else torch.accelerator.device_count()
    return ", ".join(["cpu", *(f"{accelerator.type}:{number}" for number in range(count))])  # type: ignore[union-attr]


def pick_dtype(dtype: str | torch.dtype, device: torch.device | None, half: torch.dtype = torch.float16) -> torch.dtype:
    """ "auto" (float32 on a CPU, else `half`), a torch.dtype or its name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device is None or device.type == "cpu" else half
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ExtractorError(f"unknown dtype {dtype!r}; expected one of: auto, float32, float16, bfloat16")
    return found
