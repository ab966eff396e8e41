"""Generate images with classifier-free guidance, S-CFG or S-CFG with GoCA's masks.

    python3 src-additional/generation_experiment/generate.py model=mini-sd method=goca captions=words.txt
    accelerate launch src-additional/generation_experiment/generate.py model=sd15 method=goca guidance_scale=5 \\
        captions=coco_val2014_30k_captions.csv n=30000 batch=8

Run it again with the same settings to generate missing images. See docs/generation.md.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from captions import read_captions
from goca.benchmark.run_store import RunStore
from goca.config import SegmenterConfig, load_config
from goca.errors import GocaError, explained
from goca.files.atomic import write_png
from goca.generation.calling import call_arguments
from goca.guidance import SemanticGuidance
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from records import Recorder
from tqdm import tqdm

METHODS: dict[str, str | None] = {"cfg": None, "s-cfg": "s-cfg", "goca": "goca"}  # -> SemanticGuidance's segmentor
STEPS = {"PixArtSigmaPipeline": 20, "PixArtAlphaPipeline": 20}  # 50 elsewhere, as in the paper
# fields of a config that masks depend on
GUIDING = (
    "img_size",
    "feat_size",
    "ref_layer",
    "cross_layers",
    "self_layers",
    "head_method",
    "layer_method",
    "rescale_method",
    "affinity_order",
    "self_map_rows",
)


CLEANING = ("bs4", "ftfy")  # modules that diffusers needs to clean captions


class SettingsError(GocaError, ValueError):
    """Settings that cannot be combined; the message says which."""


@dataclass
class Settings:
    """Settings on the command line, as key=value.

    model           a name in configs/model;  config.X=...: any field of it
    method          cfg, s-cfg or goca
    captions        see captions.py;  n: the first n images
    out             folder; by default runs/generation/MODEL/METHOD-SCALE
    steps           None: 50, and 20 for PixArt
    scheduler       a class of diffusers, such as DDIMScheduler, set up from the pipeline's own; None: the pipeline's
    clean_captions  as PixArt's pipelines clean them: links, tags and unusual characters removed (needs bs4 and ftfy)
    seed            seeds each image's noise, with its name
    shared_noise    all images start from the same noise, as in the released runs (seed=42)
    batch           images per call
    keep            number of images whose masks and rates at the middle step are kept for the contact sheet
    """

    model: str = MISSING
    method: str = MISSING
    captions: str = MISSING
    guidance_scale: float = 5.0
    n: int | None = None
    out: str | None = None
    pipeline: str | None = None
    steps: int | None = None
    scheduler: str | None = None
    clean_captions: bool = False
    seed: int = 42
    shared_noise: bool = False
    batch: int = 1
    keep: int = 12
    device: str = "auto"
    dtype: str = "auto"
    config: dict[str, Any] = field(default_factory=dict)


def main(arguments: Sequence[str]) -> None:
    settings = parse(Settings, arguments)
    done, rank = generate(settings), int(os.environ.get("RANK", 0))
    print(f"process {rank}: {done} images made, in {out_folder(settings)}")


def generate(settings: Settings) -> int:
    """Generate the missing images of this process; return their number."""
    if settings.method not in METHODS:
        raise SettingsError(f"unknown method={settings.method}; expected one of: {', '.join(METHODS)}")
    if settings.guidance_scale <= 1 or settings.batch < 1:
        raise SettingsError("guidance_scale must be above 1, and batch at least 1")
    captions = read_captions(settings.captions, settings.n)
    config, folder = load_config(settings.model, **settings.config), out_folder(settings)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    pipe = load_pipeline(settings, config)
    with RunStore(folder, provenance(settings, config, pipe), rank):
        mine = list(captions)[rank::world]
        kept = set(list(captions)[: settings.keep])
        missing = [name for name in mine if not (folder / f"{name}.png").exists()]
        bar = tqdm(total=len(mine), initial=len(mine) - len(missing), desc=folder.name, unit="image", disable=rank > 0)
        for names in batches(missing, settings.batch):
            prompts = prompts_of(settings, pipe, [captions[name] for name in names])
            images, recorder = one_batch(pipe, config, settings, prompts, names, bool(kept.intersection(names)))
            for place, (name, image) in enumerate(zip(names, images)):
                if name in kept and recorder is not None:
                    recorder.save(folder / "guidance" / f"{name}.npz", place)
                write_png(folder / f"{name}.png", image)
            bar.update(len(names))
        bar.close()
    return len(missing)


def one_batch(
    pipe: Any, config: SegmenterConfig, settings: Settings, prompts: list[str], names: Sequence[str], record: bool
) -> tuple[list[Any], Recorder | None]:
    """Generate images of some prompts; also return masks and rates at the middle step, if the method has any."""
    segmentor, steps = METHODS[settings.method], steps_of(settings, pipe)
    generators = [torch.Generator().manual_seed(seed_of(settings, name)) for name in names]
    with SemanticGuidance(pipe, config, prompts, segmentor) as guidance:
        recorder = Recorder(guidance, steps // 2) if segmentor and record else None
        images = pipe(
            prompts,
            num_inference_steps=steps,
            generator=generators,
            **call_arguments(config, len(prompts), settings.guidance_scale),
        ).images
        if recorder is not None:
            recorder.close()
    return images, recorder


def prompts_of(settings: Settings, pipe: Any, captions: list[str]) -> list[str]:
    """The captions for the pipeline, cleaned if requested. Raises SettingsError."""
    if not settings.clean_captions:
        return captions
    if not hasattr(pipe, "_clean_caption"):
        raise SettingsError(f"clean_captions=true, but {type(pipe).__name__} does not clean captions; PixArt does")
    if missing := [name for name in CLEANING if importlib.util.find_spec(name) is None]:
        raise SettingsError(f"clean_captions=true needs {' and '.join(missing)}: pip install beautifulsoup4 ftfy")
    cleaned: list[str] = pipe._text_preprocessing(captions, clean_caption=True)
    return cleaned


def chosen_scheduler(name: str, own: Any) -> Any:
    """Make a scheduler of diffusers by class name from the pipeline's scheduler config. Raises SettingsError."""
    import diffusers

    known = [each for each in dir(diffusers) if each.endswith("Scheduler")]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise SettingsError(f"scheduler={name} is not a scheduler of diffusers (nearest: {near})")
    try:
        return getattr(diffusers, name).from_config(own.config)
    except (ImportError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"scheduler={name} cannot be set up from {type(own).__name__}'s values: {error}") from None


def seed_of(settings: Settings, name: str) -> int:
    """The seed of an image's noise, independent of batch, order and number of processes."""
    if settings.shared_noise:
        return settings.seed
    return int.from_bytes(hashlib.sha256(f"{settings.seed}/{name}".encode()).digest()[:7], "big")


def load_pipeline(settings: Settings, config: SegmenterConfig) -> Any:
    """Load a diffusers pipeline from a folder, a hub id or "goca:NAME", without its safety checker."""
    from diffusion_feature import ExtractorError
    from diffusion_feature.loading import pick_device
    from goca.generation import loading

    location = settings.pipeline or config.pipeline
    if location is None:
        raise SettingsError(f"configs/model/{settings.model}.yaml has no pipeline; give pipeline=FOLDER")
    device = pick_device(settings.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    denoiser = None if settings.pipeline else config.denoiser
    try:
        pipe = loading.load_pipeline(location, config, device, settings.dtype, denoiser)
    except (OSError, ValueError, ExtractorError) as error:
        raise SettingsError(f"pipeline {location} cannot be read: {str(error).splitlines()[0]}") from None
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None  # a blacked-out image would affect every score
    if settings.scheduler is not None:
        pipe.scheduler = chosen_scheduler(settings.scheduler, pipe.scheduler)
    return pipe


def provenance(settings: Settings, config: SegmenterConfig, pipe: Any) -> dict[str, Any]:
    """The settings that images depend on; a folder with other settings is refused."""
    chosen = ("model", "method", "guidance_scale", "seed", "shared_noise")
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    values = config.to_dict() | {"self_map_rows": config.protocol.self_map_rows}
    return (
        {name: getattr(settings, name) for name in chosen}
        | {
            "steps": steps_of(settings, pipe),
            "pipeline": settings.pipeline or config.pipeline,
            "scheduler": type(pipe.scheduler).__name__,
            "dtype": str(denoiser.dtype).removeprefix("torch."),
            "captions": hashlib.sha256(Path(settings.captions).read_bytes()).hexdigest()[:16],
            "config": {name: values[name] for name in (GUIDING if METHODS[settings.method] else ("img_size",))},
        }
        | ({"clean_captions": True} if settings.clean_captions else {})
    )


def steps_of(settings: Settings, pipe: Any) -> int:
    return settings.steps or STEPS.get(type(pipe).__name__, 50)


def out_folder(settings: Settings) -> Path:
    name = f"{settings.method}-{settings.guidance_scale:g}"
    return Path(settings.out or f"runs/generation/{settings.model}/{name}")


def batches(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def parse(kind: type, arguments: Sequence[str]) -> Any:
    """Parse key=value arguments. Raises SettingsError with the known keys."""
    schema = OmegaConf.structured(kind)
    try:
        if unmarked := [each for each in arguments if "=" not in each]:
            raise SettingsError(f"{unmarked[0]!r} is not key=value")
        settings = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(list(arguments))))
    except OmegaConfBaseException as error:
        known = ", ".join(schema)
        raise SettingsError(f"{str(error).splitlines()[0]} (keys: {known})") from None
    return settings


def run(command: Callable[[Sequence[str]], None]) -> None:
    """Run a command; wrong input ends it with `Name: message`."""
    try:
        command(sys.argv[1:])
    except (ValueError, RuntimeError, OSError) as error:
        if not explained(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    run(main)
