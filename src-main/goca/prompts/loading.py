"""Load a pipeline's tokenizers without its weights, limited to the length that its text encoders read."""

from __future__ import annotations

from typing import Any

from .grammar import CaptionError

TOKENIZERS = ("tokenizer", "tokenizer_2")

# start of the pipeline's class name -> tokens per tokenizer, the pipelines' own defaults; None: the tokenizer's limit
LIMITS: dict[str, tuple[int | None, ...]] = {
    "StableDiffusion3": (None,),  # entities are searched in the first CLIP's tokens
    "StableDiffusion": (None, None),
    "PixArtSigma": (300,),
    "PixArtAlpha": (120,),
    "HunyuanDiT": (77, 256),
    "Chroma": (512,),
    "CogView3Plus": (224,),
    "BriaPipeline": (128,),
    "AuraFlow": (256,),
}
# pipelines with a language model: the prompt is read inside the family's template (diffusion_feature.chat)
LANGUAGE = (
    "Kandinsky5T2I",
    "CogView4",
    "Ovis",
    "LongCat",
    "Lumina2",
    "QwenImage",
    "Flux2",
    "ZImage",
    "HunyuanImage",
    "Sana",
    "Kolors",
)
LIMITS |= dict.fromkeys(LANGUAGE, (None,))
LIMITS["Flux"] = (None, 512)


def load_tokenizers(location: str) -> dict[str, Any]:
    """{"tokenizer": ...} and, if there is a second one, "tokenizer_2"; no weights are loaded.

    location  a pipeline folder, a hub id, or "goca:NAME". Each tokenizer's model_max_length is the pipeline's.
    Raises diffusion_feature's PipelineNotFound or PartMissing, CaptionError for an unknown kind of pipeline.
    """
    import torch  # for the loader's signature only
    import transformers
    from diffusion_feature.reading import Source, class_of, read_part
    from diffusion_feature.repository import Repository

    from goca.embedded import resolve

    location = resolve(str(location))
    place = Repository(location)
    index, limits = place.parts(), _limits(str(place.index().get("_class_name")))
    found: dict[str, Any] = {}
    for name, limit in zip(TOKENIZERS, limits):
        library, class_name = index.get(name, (None, None))
        if class_name is None:
            continue
        if library not in ("transformers", "kolors") or (
            library == "transformers" and not hasattr(transformers, class_name)
        ):
            raise CaptionError(f"{location}: {name!r} is a {library}.{class_name}; expected one of transformers")
        kind = class_of(name, Source(place, name, library, class_name))
        found[name] = read_part(location, name, kind, torch.float32)
        if limit is not None:
            found[name].model_max_length = limit
    if "tokenizer" not in found:
        raise CaptionError(f"{location} has no tokenizer in its model_index.json")
    return found


def _limits(class_name: str) -> tuple[int | None, ...]:
    limits = next((limits for prefix, limits in LIMITS.items() if class_name.startswith(prefix)), ())
    if not limits:
        known = ", ".join(prefix for prefix, limits in LIMITS.items() if limits)
        raise CaptionError(f"unknown prompt format of a {class_name}; expected a pipeline named {known}...")
    return limits
