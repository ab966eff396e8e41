"""Checks of locations for `goca doctor`: a pipeline folder, the hub, a data set's folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.cli.machine import Line
from goca.files.bounded_json import read_json

if TYPE_CHECKING:
    from goca.datasets import DatasetConfig

PATIENCE = 5  # seconds to wait for the hub
WEIGHTS = ("*.safetensors",)
WITHOUT_WEIGHTS = ("tokenizer", "scheduler", "feature_extractor", "image_processor", "safety_checker")
ELSEWHERE = "goca segment IMAGE --pipeline FOLDER --model CONFIG"


def shadows(folder: Path) -> Iterator[Line]:
    """Whether a folder named goca inside this one hides the package from scripts that run here.

    Python treats it as a namespace package, unless the real package lies in a folder of sys.path; an editable install
    does not.
    """
    hidden = folder / "goca"
    importable = any(Path(place, "goca", "__init__.py").is_file() for place in sys.path if place)
    if hidden.is_dir() and not (hidden / "__init__.py").is_file() and not importable:
        found = f"{hidden} hides the package from scripts that run in this folder"
        yield Line("goca", found, f"pip install {hidden}   (not --editable), or rename the folder")


def pipeline(place: str) -> Iterator[Line]:
    """Whether a pipeline can be read: every component of a folder; a hub id in the cache or over the network."""
    from goca.embedded import resolve

    folder = Path(resolve(place)).expanduser()
    yield from [folder_line(place, folder)] if folder.exists() else [hub_line(place)]


def denoiser(place: str) -> Line:
    """Whether another location has a denoiser, in a subfolder with its name or at the top."""
    from diffusion_feature.repository import Repository

    found = Repository(str(Path(place).expanduser()) if Path(place).expanduser().exists() else place)
    if any(found.holds(part) for part in ("unet", "transformer", "")):
        return Line("denoiser", f"{place} has one")
    what = "has none" if found.files else "is not a folder, and was not found on the hub"
    return Line("denoiser", f"{place} {what}", f"hf download {place} --local-dir FOLDER", needed=True)


def folder_line(place: str, folder: Path) -> Line:
    from diffusion_feature.errors import PipelineNotFound
    from diffusion_feature.repository import Repository

    index = folder / "model_index.json"
    fetch = f"hf download HUB_ID --local-dir {place}"
    if not index.is_file():
        return Line("pipeline", f"{place} has no model_index.json", fetch, needed=True)
    try:
        found = Repository(str(folder))
        parts, kind = list(found.parts()), found.index().get("_class_name")
    except PipelineNotFound as error:
        return Line("pipeline", str(error), fetch, needed=True)
    missing = [name for name in parts if not complete(folder / name)]
    if missing:
        return Line("pipeline", f"{place} lacks {', '.join(missing)}", fetch, needed=True)
    return Line("pipeline", f"{place}: {kind}, {', '.join(parts)}")


def complete(part: Path) -> bool:
    """Whether a component's folder exists and has all its weight files, if it has weights."""
    if part.name.startswith(WITHOUT_WEIGHTS):
        return part.name.startswith(("feature", "image", "safety")) or part.is_dir()  # these three are never read
    found = {file.name for pattern in WEIGHTS for file in part.glob(pattern)}
    for index in part.glob("*.safetensors.index.json"):
        try:
            found &= found if set(read_json(index)["weight_map"].values()) <= found else set()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False
    return bool(found)


def hub_line(place: str) -> Line:
    """Whether the pipeline is in the hub's cache, or can be downloaded with the current login."""
    import huggingface_hub as hub
    from diffusion_feature.repository import COPIES
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        if isinstance(hub.try_to_load_from_cache(place, "model_index.json"), str):
            return Line("pipeline", f"{place} is in the hub's cache")
        hub.get_hf_file_metadata(hub.hf_hub_url(place, "model_index.json"), timeout=PATIENCE)
    except HFValidationError:
        return Line("pipeline", f"{place} is neither a folder nor a hub id", ELSEWHERE, needed=True)
    except GatedRepoError:
        return Line("pipeline", f"{place}: accept its terms on the hub, then log in", "hf auth login", needed=True)
    except RepositoryNotFoundError:
        fix = f"--pipeline {COPIES[place]}, a copy of it" if place in COPIES else "hf auth login"
        return Line("pipeline", f"the hub has no {place}, or this login may not read it", fix, needed=True)
    except Exception as error:  # whatever the hub's HTTP client raises
        return Line("pipeline", f"{place}: the hub cannot be reached ({type(error).__name__})", ELSEWHERE, needed=True)
    return Line("pipeline", f"{place} can be downloaded from the hub")


def dataset(name: str, root: str | None, progress: Callable[[Sequence[str]], Iterable[str]] = iter) -> Iterator[Line]:
    """Whether a data set's folder is complete; every image and label is opened."""
    from goca.config_folder import config_folder
    from goca.datasets import DatasetError, load_dataset
    from goca.datasets.check import examine

    known = sorted(file.stem for file in (config_folder() / "dataset").glob("*.yaml"))
    command = f"goca doctor --dataset {name} --root FOLDER"
    if name not in known:
        found = f"unknown data set {name!r}; expected one of: {', '.join(known)}"
        yield Line("dataset", found, "goca doctor --dataset NAME --root FOLDER", needed=True)
        return
    try:
        config = dataset_config(name, root)
        report = examine(load_dataset(config), config, progress=progress)
    except DatasetError as error:
        yield Line("dataset", f"{name}: {str(error).splitlines()[0]}", command, needed=True)
        return
    if report.ready:
        yield Line("dataset", f"{name}: {report.looked_at} images and labels")
        return
    counts = ", ".join(f"{len(images)} with {kind}" for kind, images in report.found.items()) or "another list"
    yield Line("dataset", f"{name}: {counts}; {'; '.join(report.fixes())}", command, needed=True)


def dataset_config(name: str, root: str | None) -> DatasetConfig:
    """configs/dataset/NAME.yaml, with the root replaced if one is given."""
    from goca.config_folder import config_folder
    from goca.datasets import DatasetConfig
    from goca.files.text import read_yaml

    fields: Any = read_yaml(config_folder() / "dataset" / f"{name}.yaml")
    return DatasetConfig.of({**fields, **({"root": root} if root else {})})
