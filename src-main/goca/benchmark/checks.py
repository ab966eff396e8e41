"""Checks of a run's configuration, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goca.benchmark.settings import BESIDES, GROUPS, KEYS, Merging, RunSettings
from goca.benchmark.word_sources import DEFAULT, TaggerConfig
from goca.config import FIELDS, SegmenterConfig, read_fields
from goca.datasets import DatasetConfig
from goca.errors import GocaError
from goca.protocol import Protocol
from goca.schema import ConfigError, check, shown


class NothingCounted(GocaError, ValueError):
    """Every image of a run was skipped. runs: folder of each such run -> its results, with the reasons"""

    def __init__(self, runs: Mapping[Path, dict[str, Any]]) -> None:
        super().__init__("\n".join(f"no image was counted in {folder}: {_why(each)}" for folder, each in runs.items()))
        self.runs = runs


def refuse_empty(runs: Mapping[Path, dict[str, Any] | None]) -> None:
    """Raises NothingCounted for runs (folder -> results) that have images but counted none."""
    written = {folder: results for folder, results in runs.items() if results is not None}
    if empty := {folder: each for folder, each in written.items() if _is_empty(each["images"])}:
        raise NothingCounted(empty)


def _is_empty(images: Mapping[str, Any]) -> bool:
    return bool(images["listed"]) and not images["counted"]


def _why(results: Mapping[str, Any]) -> str:
    images = results["images"]
    first = images["skipped"][0]["reason"] if images["skipped"] else "no reason is known"
    return f"all {images['listed']} were skipped, the first because: {first}; its results.json has the reasons for all"


def checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], SegmenterConfig, DatasetConfig]:
    """A run's own keys, its model and its data set, with checked types.

    Raises ConfigError, DatasetError or ProtocolError; nothing is loaded or searched on disk.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"the configuration is {shown(config)}; expected a mapping of {', '.join(KEYS)}")
    check(RunSettings, config, ConfigError, beside=[*GROUPS, *BESIDES])
    own = {key: value for key, value in config.items() if key not in (*GROUPS, *BESIDES)}
    for key in ("run_dir", "model", "dataset"):
        if config.get(key) is None:
            raise ConfigError(f"{key} is not set")
    Merging.of(own.get("merging"))
    TaggerConfig.of(own.get("tagger"))
    model = config["model"]
    if not isinstance(model, str | Mapping):
        raise ConfigError(f"model is {shown(model)}; expected a mapping of {', '.join(FIELDS)}, or a name")
    protocol = Protocol.of(config.get("protocol", "paper"))
    fields = read_fields(model)
    if "protocol" in fields and Protocol.of(fields["protocol"]) != protocol:
        raise ConfigError("model.protocol and protocol differ; a run has only one, so set only protocol")
    fields["protocol"] = protocol
    if own.get("ask") is not None:
        fields["ask"] = own["ask"]
    check(SegmenterConfig, fields, ConfigError, "model")
    found = SegmenterConfig(**fields)
    if found.keep_all_objects:
        raise ConfigError("model.keep_all_objects gives a map per background entity; scoring needs it to be false")
    check_asked(found, own)
    return own, found, DatasetConfig.of(config["dataset"])


def check_asked(model: SegmenterConfig, own: Mapping[str, Any]) -> None:
    """Raises ConfigError if `ask` and `words` do not fit the run's other settings."""
    given = [f"words={own['words']}"] if own.get("words", DEFAULT) != DEFAULT else []
    if model.ask == "open":
        given.append("ask=open")
        if model.method != "goca":
            raise ConfigError(f"ask=open is not for method {model.method!r}; choose ask=complete")
    if given and own.get("annotations"):
        raise ConfigError(f"annotations=FILE determines what is looked for; leave out {' and '.join(given)}")
    if given and own.get("task") == "unsupervised":
        raise ConfigError(f"task=unsupervised uses no class names; leave out {' and '.join(given)}")
