"""The config that fits a pipeline on disk or on the hub, found from its JSON files; no weights are read."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
from diffusion_feature.reading import DENOISERS, Source, denoiser_of
from diffusion_feature.repository import Repository

from goca.config import folder, names, read_config
from goca.embedded import resolve
from goca.generation.adapters import ConfigNotKnown, config_of


def config_of_place(place: str, denoiser: str | None = None) -> str:
    """The name in configs/model that fits a stored pipeline.

    place     a folder, a hub id or "goca:NAME"
    denoiser  another folder or hub id, whose denoiser replaces the pipeline's
    raises    ConfigNotKnown where none is known; PipelineNotFound where there is no pipeline
    """
    home = Repository(resolve(place))
    parts = home.parts()
    name = next((name for name in DENOISERS if name in parts), None)
    if name is None:
        raise ConfigNotKnown(f"{place} has no denoiser ({' or '.join(DENOISERS)}); name the config that fits it")
    source = denoiser_of(Repository(denoiser), name) if denoiser else Source(home, name, *parts[name])
    kind = str(source.class_name)
    config = SimpleNamespace(**defaults(kind) | source.place.config(source.folder))
    pipe = instance(str(home.index().get("_class_name")), **{name: instance(kind, config=config)})
    own = [] if denoiser else configs_naming(place)
    try:
        found = config_of(pipe)
    except ConfigNotKnown as error:
        if not own:
            raise ConfigNotKnown(f"{denoiser or place}: {error}") from None
        found = own[0]
    return found if found in own or not own else own[0]


def configs_naming(place: str) -> list[str]:
    """The configs whose own pipeline this is, the shortest name first: the others (NAME-vanilla, ...) start from it."""
    stated = [name for name in names() if place in (folder() / f"{name}.yaml").read_text(encoding="utf-8")]
    return sorted((name for name in stated if read_config(name).get("pipeline") == place), key=len)


def instance(kind: str, **fields: Any) -> Any:
    """An object of an empty class of that name, with these fields."""
    made = type(kind, (), {})()
    vars(made).update(fields)
    return made


def defaults(kind: str) -> dict[str, Any]:
    """Default arguments of a denoiser's class: a stored config may lack those that were added later."""
    found = getattr(diffusers, kind, None)
    parameters = inspect.signature(found).parameters if isinstance(found, type) else {}
    return {name: each.default for name, each in parameters.items() if each.default is not each.empty}
