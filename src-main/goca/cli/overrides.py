"""Arguments of commands, `group=choice` and `key=value`: the configuration and run folder that they give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from goca.benchmark.settings import GROUPS
from goca.cli.hydra_command import resolved
from goca.config_folder import config_folder

PLACES = r"roots\..+|dataset\.(root|labels)|model\.(pipeline|denoiser)|run_dir|annotations|noise_file"
NOT_IN_NAME = re.compile(rf"({PLACES}|limit|strict|batch_size|max_bytes|offload|label_maps)=")


def default_run_dir(choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """runs/<model>-<dataset>-<protocol>, then every other setting that changes the results."""
    own = [each for each in overrides if not NOT_IN_NAME.match(each) and each.split("=")[0] not in GROUPS]
    name = ",".join(["-".join(choices[group] for group in GROUPS), *sorted(own)])
    return "runs/" + re.sub(r"[^\w.,=+-]+", "_", name)


def configured(overrides: Sequence[str]) -> dict[str, Any]:
    """The values with which src-main/main.py would run, including `choices` and `run_dir`.

    A later override of a key replaces an earlier one. Raises hydra.errors.HydraException or an OmegaConf error for an
    invalid choice, key or value.
    """
    given = latest(overrides)
    parsed = [parser().parse_override(each) for each in given]
    plain = [each for each in parsed if not each.is_sweep_override() and is_field(each)]
    config, choices = composed(tuple(str(each.input_line) for each in parsed if each not in plain))
    config = config.copy()
    for each in plain:
        OmegaConf.update(config, each.key_or_group, each.value())
    return completed(resolved(config), choices, given)


def completed(values: dict[str, Any], choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration with the run folder; a pipeline that was overridden without a denoiser uses its own denoiser."""
    named = {each.lstrip("+").split("=")[0] for each in overrides}
    model, run_dir = values["model"], values["run_dir"] or default_run_dir(choices, overrides)
    if "model.pipeline" in named and "model.denoiser" not in named:
        model = {**model, "denoiser": None}
    return {**values, "model": model, "run_dir": run_dir, "choices": dict(choices)}


def latest(overrides: Sequence[str]) -> list[str]:
    """The last override of each key, at the position of its first one."""
    return list({each.split("=")[0]: each for each in overrides}.values())


def is_field(override: Override) -> bool:
    """Whether an override sets a value, rather than choosing a file of a group."""
    return override.type is not None and override.type.name == "CHANGE" and override.key_or_group not in GROUPS


@cache
def composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """Hydra's configuration, and the choice of each group; cached, since Hydra needs a tenth of a second."""

    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = {group: config.hydra.runtime.choices[group] for group in GROUPS}
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(own, True)  # unknown keys are refused
    return own, choices


@cache
def parser() -> OverridesParser:
    return OverridesParser.create()
