"""A pipeline's parts, from a folder, a hub id or a pipeline object. Weights are read from safetensors only."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion_feature.backbone import Backbone, Parts
from diffusion_feature.devices import offload
from diffusion_feature.errors import ExtractorError, PartMissing, PipelineNotFound, WrongFamily

DENOISERS = ("unet", "transformer")
T5 = "T5EncoderModel"
LIBRARIES = ("diffusers", "transformers")  # a model_index.json may name classes of these, and of nothing else


def load_parts(
    pipeline: Any,
    backbone: Backbone,
    device: str | torch.device,
    dtype: str | torch.dtype,
    offloading: str | None = None,
    int8_text: bool = False,
) -> Parts:
    """The parts that the family needs, on the device, in eval mode.

    pipeline   a folder written by `save_pretrained`, a hub id, or a pipeline object (scheduler untouched)
    device     "auto": an accelerator where there is one; for a pipeline object: where it is
    dtype      "auto": float32 on a CPU, the family's 16-bit type on an accelerator; for a pipeline object: what it has
    offloading see `devices.offload`;  int8_text  a folder's T5 in 8 bit
    errors     PipelineNotFound, PartMissing, WrongFamily, ExtractorError
    """
    read = isinstance(pipeline, str | Path)
    place: torch.device | None = pick_device(device) if read or device != "auto" or offloading else None
    if read:
        kind, t5 = pick_dtype(dtype, place, backbone.half), int8(place) if int8_text else None
        parts = read_parts(pipeline, backbone, kind, t5)
    elif int8_text:
        raise ExtractorError("int8_text needs a folder or a hub id: a pipeline object's weights are read already")
    else:
        parts = parts_of(pipeline, backbone)
    given = None if read or dtype == "auto" else dtype  # what was read has its types: a T5 keeps some in float32
    settled = {name: settle(name, part, None if offloading else place, given) for name, part in parts.items()}
    if offloading:
        offload(settled, backbone.denoiser, offloading, place)  # type: ignore[arg-type]
    return settled


def int8(device: torch.device | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load a part in 8 bit."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ExtractorError("int8_text needs bitsandbytes: pip install 'goca[int8]'")
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}


def parts_of(pipeline: Any, backbone: Backbone) -> dict[str, Any]:
    parts = {name: getattr(pipeline, name, None) for name in backbone.parts}
    found = type(pipeline).__name__
    if parts[backbone.denoiser] is None and (other := other_denoiser(vars(pipeline), backbone)):
        raise wrong_family(f"{found} has a {other}", backbone)
    refuse_other(parts[backbone.denoiser], backbone)
    if absent := [name for name, part in parts.items() if part is None]:
        raise PartMissing(f"{found} has no {absent[0]!r}; {backbone.name} needs: {all_of(backbone)}")
    extra = {name: getattr(pipeline, name, None) for name in backbone.optional}
    return parts | {name: part for name, part in extra.items() if part is not None}


def other_denoiser(names: Iterable[str], backbone: Backbone) -> str | None:
    return next((name for name in DENOISERS if name in names and name != backbone.denoiser), None)


def refuse_other(denoiser: Any, backbone: Backbone) -> None:
    if denoiser is not None and not (type(denoiser).__name__ == backbone.kind and backbone.accepts(denoiser)):
        raise wrong_family(f"the pipeline's {backbone.denoiser} is a {type(denoiser).__name__}", backbone)


def wrong_family(found: str, backbone: Backbone) -> WrongFamily:
    return WrongFamily(
        f"{found}, which is not the {backbone.name} of this version; choose the config of the pipeline's own family"
    )


def settle(name: str, part: Any, device: torch.device | None, dtype: Any) -> Any:
    """A module on its device, frozen in eval mode; a VAE that overflows in half precision is kept in float32."""
    if not isinstance(part, torch.nn.Module):
        return part
    if getattr(part, "is_loaded_in_8bit", False):
        return part.eval()
    if device is not None:
        part = part.to(device)
    if dtype is not None:
        part = part.to(pick_dtype(dtype, device))
    if name == "vae" and part.dtype == torch.float16 and getattr(part.config, "force_upcast", False):
        part = part.to(torch.float32)
    return part.eval()


def read_parts(
    location: str | Path, backbone: Backbone, dtype: torch.dtype, t5: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The parts from a folder or the hub; `t5`: more arguments with which a T5 encoder is read."""
    index = read_index(str(location))
    if backbone.denoiser not in index and (other := other_denoiser(index, backbone)):
        raise wrong_family(f"{location} has a {other} ({index[other][1]})", backbone)
    parts = {}
    for name in backbone.parts + backbone.optional:
        library, class_name = index.get(name) or (None, None)
        if class_name is None:
            if name in backbone.optional:
                continue
            raise PartMissing(f"{location} has no {name!r}; {backbone.name} needs: {all_of(backbone)}")
        if library not in LIBRARIES:
            raise PartMissing(f"{location}: {name!r} is of library {library!r}; read are: {', '.join(LIBRARIES)}")
        if name == backbone.denoiser and class_name not in (backbone.kind, *backbone.old_kinds):
            raise wrong_family(f"{location}: the {name} is a {class_name}", backbone)
        kind, more = getattr(importlib.import_module(library), class_name), t5 or {}
        parts[name] = read_part(str(location), name, kind, dtype, more if class_name == T5 else {})
        if name == backbone.denoiser:  # it comes first: nothing else is read in vain
            refuse_other(parts[name], backbone)
    return parts


def read_part(location: str, name: str, kind: Any, dtype: torch.dtype, more: Mapping[str, Any] | None = None) -> Any:
    weighs = issubclass(kind, torch.nn.Module)
    weights: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, **(more or {})} if weighs else {}
    if "transformers" in kind.__module__ and weights:
        weights["dtype"] = weights.pop("torch_dtype")
    try:
        with quiet():
            if not weights:
                return kind.from_pretrained(location, subfolder=name)
            part, report = kind.from_pretrained(location, subfolder=name, output_loading_info=True, **weights)
    except (OSError, ValueError) as error:
        raise PartMissing(f"{location}: the part {name!r} cannot be read as a {kind.__name__}: {error}") from error
    if missing := sorted(report["missing_keys"]):  # they would be left at random values
        raise PartMissing(
            f"{location}: the weights of {name!r} lack {len(missing)} of a {kind.__name__}, such as {missing[0]}: the "
            "files are another model's, or written by a newer version of the library than the one installed"
        )
    return part


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_index(location: str) -> dict[str, Any]:
    """The pipeline's model_index.json, from a folder or through the hub's client."""
    file = Path(location) / "model_index.json"
    expected = "expected a folder written by `save_pretrained` (model_index.json, unet/, vae/, ...) or a hub id"
    if Path(location).exists():
        if not file.is_file():
            raise PipelineNotFound(f"{location} is not a pipeline folder: it has no model_index.json; {expected}")
    else:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(location, "model_index.json"))
        except Exception as error:
            raise PipelineNotFound(
                f"{location!r} is no folder, and no hub id that can be read ({error}); {expected}"
            ) from error
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise PipelineNotFound(f"{file} is not JSON ({error}); {expected}") from error


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto": the accelerator that torch finds, else the CPU."""
    if device != "auto":
        return torch.device(device)
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def pick_dtype(dtype: str | torch.dtype, device: torch.device | None, half: torch.dtype = torch.float16) -> torch.dtype:
    """ "auto" (float32 on a CPU, else `half`), a torch.dtype or its name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device is None or device.type == "cpu" else half
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ExtractorError(f"dtype {dtype!r} is not known; there are: auto, float32, float16, bfloat16")
    return found


def all_of(backbone: Backbone) -> str:
    return ", ".join(backbone.parts)
