"""Read a pipeline's components from files. Only safetensors weights are read, so no file can execute code."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_feature.backbone import Backbone, Parts
from diffusion_feature.errors import ExtractorError, PartMissing, WrongFamily
from diffusion_feature.modules import wrapper_of
from diffusion_feature.repository import INDEX, Repository, refuse_unknown
from diffusion_feature.vaes import kind_of

DENOISERS = ("unet", "transformer")
T5 = "T5EncoderModel"
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")
# a model_index.json may name classes of these, and of nothing else: library -> module
LIBRARIES = {"diffusers": "diffusers", "transformers": "transformers", "kolors": "diffusers.pipelines.kolors"}


@dataclass(frozen=True)
class Source:
    """Where a component is read from: repository, its folder ("": the top) and its class."""

    place: Repository
    folder: str
    library: str | None
    class_name: str | None


def read_parts(
    location: str,
    backbone: Backbone,
    dtype: torch.dtype,
    t5: Mapping[str, Any] | None = None,
    variant: str | None = "auto",
    denoiser: str | None = None,
    vae_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Read a family's components from a folder or the hub.

    t5        more arguments with which a T5 encoder is read
    variant   of the weights' files: see `repository.chosen`
    denoiser  another place, whose denoiser takes the place of the pipeline's own
    vae_dtype of the VAE alone, where it is another one
    errors    PipelineNotFound, PartMissing, WrongFamily
    """
    found = sources(Repository(location), backbone, Repository(denoiser) if denoiser else None)
    refuse_unknown([(source.place, source.folder) for source in found.values()], variant)
    parts: dict[str, Any] = {}
    for (
        name,
        source,
    ) in (
        found.items()
    ):  # the denoiser is read first, so that a wrong family is refused before the other components are read
        if source.class_name is None:
            if name in backbone.optional:
                continue
            raise PartMissing(f"{source.place.location} has no {name!r}; {backbone.name} needs: {all_of(backbone)}")
        own = vae_dtype if name == "vae" and vae_dtype else dtype
        parts[name] = read_source(name, source, own, variant, t5 if source.class_name == T5 else None)
        if name == backbone.denoiser:
            refuse_other(parts[name], backbone)
    return parts


def read_source(
    name: str, source: Source, dtype: torch.dtype, variant: str | None, more: Mapping[str, Any] | None = None
) -> Any:
    """One part, in the variant that fits; more: further arguments of `from_pretrained`."""
    kind, given = class_of(name, source), dict(more or {})
    if is_module(kind) and (picked := source.place.variant(source.folder, variant, dtype)):
        given["variant"] = picked
    return read_part(source.place.location, source.folder, kind, dtype, given)


def read_pipeline(
    location: str, backbone: Backbone, dtype: torch.dtype, variant: str | None = "auto", denoiser: str | None = None
) -> Any:
    """The whole diffusers pipeline of a folder or hub id, from the files that `read_parts` would take.

    errors   those of `read_parts`; OSError and ValueError, as diffusers raises them
    """
    from diffusers import DiffusionPipeline

    given: dict[str, Any] = {}
    if denoiser:
        source = denoiser_of(Repository(denoiser), backbone.denoiser)
        given[backbone.denoiser] = read_source(backbone.denoiser, source, dtype, variant)
    if picked := Repository(location).variant("vae", variant, dtype):  # every pipeline has one
        given["variant"] = picked
    with quiet():
        return DiffusionPipeline.from_pretrained(location, dtype=dtype, use_safetensors=True, **given)


def sources(home: Repository, backbone: Backbone, second: Repository | None) -> dict[str, Source]:
    """Where each part of the family is, the denoiser first. Raises WrongFamily where that is another's."""
    index = home.parts()
    if not second and backbone.denoiser not in index and (other := other_denoiser(index, backbone)):
        raise wrong_family(f"{home.location} has a {other} ({index[other][1]})", backbone)
    names = backbone.parts + backbone.optional
    named = {name: Source(home, name, *index.get(name, (None, None))) for name in names}
    if second:
        named[backbone.denoiser] = denoiser_of(second, backbone.denoiser)
    refuse_library(backbone.denoiser, named[backbone.denoiser])
    kind = named[backbone.denoiser].class_name
    if kind not in (None, backbone.kind, *backbone.old_kinds):
        place = named[backbone.denoiser].place.location
        raise wrong_family(f"{place}: the {backbone.denoiser} is a {kind}", backbone)
    return named


def denoiser_of(place: Repository, name: str) -> Source:
    """The denoiser of a place that may hold nothing else, in a folder of its name or at the top."""
    folder = "" if place.holds("") and not place.holds(name) else name
    return Source(place, folder, "diffusers", place.config(folder).get("_class_name"))


def refuse_library(name: str, source: Source) -> None:
    if source.class_name is not None and source.library not in LIBRARIES:
        where, library = source.place.location, source.library
        raise PartMissing(f"{where}: {name!r} is of library {library!r}; read are: {', '.join(LIBRARIES)}")


def class_of(name: str, source: Source) -> type:
    """The class that an index names. Raises PartMissing where it is not one of the two libraries'."""
    refuse_library(name, source)
    where, library = source.place.location, str(source.library)
    found = getattr(importlib.import_module(LIBRARIES[library]), str(source.class_name), None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise PartMissing(f"{where}: {name!r} is a {source.class_name}, which the installed {library} does not have")
    if is_module(found) == name.startswith(WITHOUT_WEIGHTS):
        raise PartMissing(f"{where}: {name!r} is a {source.class_name}, which is something else; is {INDEX} damaged?")
    return found


def is_module(kind: type) -> bool:
    return issubclass(kind, torch.nn.Module)


def read_part(location: str, name: str, kind: Any, dtype: torch.dtype, more: Mapping[str, Any] | None = None) -> Any:
    """One part of a folder or a hub id; name "": the place is the part's own folder."""
    where: dict[str, Any] = {"subfolder": name} if name else {}
    weights: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True} if is_module(kind) else {}
    weights |= (more or {}) if weights else {}
    if "transformers" in kind.__module__ and weights:
        weights["dtype"] = weights.pop("torch_dtype")
    with quiet(), named_error(f"{location}: the part {name!r} cannot be read as a {kind.__name__}"):
        if not weights:
            return kind.from_pretrained(location, **where)
        part, report = kind.from_pretrained(location, **where, output_loading_info=True, **weights)
    if missing := sorted(report["missing_keys"]):  # they would be left at random values
        raise PartMissing(
            f"{location}: the weights of {name!r} lack {len(missing)} of a {kind.__name__}, such as {missing[0]}: the "
            "files are another model's, or written by a newer version of the library than the one installed"
        )
    return part


@contextmanager
def named_error(what: str) -> Iterator[None]:
    """Re-raise any error, such as that of a damaged file, as a PartMissing that begins with `what`."""
    try:
        yield
    except ExtractorError:
        raise
    except BaseException as error:  # the tokenizers' library panics, which is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError | torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise PartMissing(f"{what}: {kind}{reason or 'no message'}") from error


def int8(device: torch.device | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load a part in 8 bit."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ExtractorError("int8_text needs bitsandbytes: pip install 'goca[int8]'")
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}


# ---- of which family


def other_denoiser(names: Iterable[str], backbone: Backbone) -> str | None:
    return next((name for name in DENOISERS if name in names and name != backbone.denoiser), None)


def refuse_other(denoiser: Any, backbone: Backbone) -> None:
    if path := wrapper_of(denoiser):
        name, kind = f"pipe.{backbone.denoiser}", type(denoiser).__name__
        raise WrongFamily(
            f"the pipeline's {backbone.denoiser} is wrapped in {kind}, so it cannot be looked into; put what is "
            f"wrapped in its place (a peft model's adapters are in it): `{name} = {name}.{path}`"
        )
    if has_adapter_images(denoiser):
        raise WrongFamily(
            "the pipeline has an IP-Adapter, whose images are attended to beside the text; take it off: "
            "`pipe.unload_ip_adapter()`"
        )
    if denoiser is not None and not (type(denoiser).__name__ == backbone.kind and backbone.accepts(denoiser)):
        raise wrong_family(f"the pipeline's {backbone.denoiser} is a {type(denoiser).__name__}", backbone)


def has_adapter_images(denoiser: Any) -> bool:
    """Whether an IP-Adapter is loaded into it."""
    held = type(getattr(denoiser, "encoder_hid_proj", None)).__name__
    return held == "MultiIPAdapterImageProjection" or getattr(denoiser, "image_proj", None) is not None


def refuse_inputs(parts: Parts, backbone: Backbone) -> None:
    """Refuse a denoiser with further inputs beside the noisy image. Raises WrongFamily."""
    vae: Any = parts["vae"]
    denoiser: Any = parts[backbone.denoiser]
    if not isinstance(vae, torch.nn.Module):  # guidance names it only
        return
    made, taken = kind_of(vae).channels(vae.config), in_channels(denoiser.config)
    if taken not in (made, made * backbone.patch**2):
        raise WrongFamily(
            f"the {type(denoiser).__name__} takes {taken} channels, the VAE makes {made}: an inpainting or editing "
            "model, which has inputs beside the noisy image. Segment with its text-to-image pipeline, or trace what it "
            "generates (goca.trace)"
        )


def in_channels(config: Any) -> int:
    return config.in_visual_dim if hasattr(config, "in_visual_dim") else config.in_channels  # Kandinsky's name


def wrong_family(found: str, backbone: Backbone) -> WrongFamily:
    return WrongFamily(
        f"{found}, which is not the {backbone.name} of this version; choose the config of the pipeline's own family"
    )


def all_of(backbone: Backbone) -> str:
    return ", ".join(backbone.parts)


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
