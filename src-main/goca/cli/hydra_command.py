"""Shared by commands with Hydra configs: argument checks, values without secrets, errors in one sentence."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from goca.benchmark.settings import GROUPS, KEYS
from goca.cli import INTERRUPTED
from goca.config_folder import config_folder
from goca.errors import explained
from goca.files.text import read_yaml
from goca.schema import ConfigError, nearest, shown
from goca.schema import named as short

ENVIRONMENT = "oc.env"
WITH_VALUE = ("--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp", "--package", "-p", "--cfg", "-c")
CONFIG_DIRS = ("--config-dir", "-cd")
SEARCH_PATH = ("--config-path", "-cp", "hydra.searchpath")
CHOICES = (*GROUPS, "labeler")
Names = Callable[[], Iterable[str]]


def fields_of(module: str, name: str) -> Names:
    """The field names of a dataclass, which is imported on demand."""

    def names() -> list[str]:
        found = getattr(__import__(module, fromlist=[name]), name)
        return [field.name for field in dataclasses.fields(found)]

    return names


# keys of a run -> the names that may follow after a dot; None: any
RUN_KEYS: dict[str, Names | None] = {
    **dict.fromkeys(KEYS),
    "model": fields_of("goca.config", "SegmenterConfig"),
    "dataset": fields_of("goca.datasets", "DatasetConfig"),
    "protocol": lambda: ["preset", *fields_of("goca.protocol", "Protocol")()],
    "merging": fields_of("goca.benchmark.settings", "Merging"),
}


@contextmanager
def plain_errors(interrupted: str = "") -> Iterator[None]:
    """End the command with one sentence for an error of ours (exit status 1) or an interruption (130)."""
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted{interrupted and f'; {interrupted}'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not explained(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
            INTERRUPT.clear()


INTERRUPT = threading.Event()  # set when Ctrl-C is pressed while a command runs


def _interrupt(*_: Any) -> None:
    INTERRUPT.set()
    raise KeyboardInterrupt


def interruptible(items: Iterable[Any]) -> Iterator[Any]:
    """The items, until Ctrl-C is pressed, even if the exception itself was swallowed by clean-up code."""
    for item in items:
        if INTERRUPT.is_set():
            raise KeyboardInterrupt
        yield item


def check_arguments(arguments: Sequence[str], keys: Mapping[str, Names | None] = RUN_KEYS) -> None:
    """Raise ConfigError for an argument with an unknown key (with the nearest one) or an unreadable value.

    Errors that Hydra itself explains well, such as an unclosed bracket, are left to Hydra.
    """
    parser = OverridesParser.create()
    folders = config_dirs(arguments)
    before = ""
    for argument in arguments:
        flag, before = before, argument
        option, _, value = argument.partition("=")
        if flag in CONFIG_DIRS or option in CONFIG_DIRS:
            check_files(argument if flag in CONFIG_DIRS else value)
        if flag in WITH_VALUE or argument.startswith("-"):
            continue
        try:
            override = parser.parse_override(argument)
        except HydraException:
            continue
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{shown(argument)} cannot be read: {error}; expected key=value") from None
        check_key(override.key_or_group, keys)
        if override.key_or_group in CHOICES and not override.is_delete():
            check_choice(argument, override, folders)


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """configs/ and the folders given by --config-dir; empty if other arguments change Hydra's search path."""
    if any(argument.split("=")[0].lstrip("+") in SEARCH_PATH for argument in arguments):
        return []
    given = [argument for flag, argument in pairwise(arguments) if flag in CONFIG_DIRS]
    given += [
        value for option, _, value in (each.partition("=") for each in arguments) if value and option in CONFIG_DIRS
    ]
    return [config_folder(), *map(Path, given)]


def check_choice(argument: str, override: Override, folders: Sequence[Path]) -> None:
    """Raise ConfigError, with the nearest name, if no folder has a file for the choice of a group."""
    group, value = override.key_or_group, override.value()
    sweep = override.is_sweep_override()
    choices = value.list if isinstance(value, ChoiceSweep) else [] if sweep else [value]
    if not sweep and not isinstance(value, str | list | dict):
        raise ConfigError(f"{argument}: expected the name of a file in configs/{group}")
    known = {file.stem for folder in folders for file in (folder / group).rglob("*.yaml")}
    for choice in choices:
        name = choice.text if isinstance(choice, QuotedString) else choice
        if folders and isinstance(name, str) and Path(name).name.removesuffix(".yaml") not in known:
            there = sorted(each for each in known if not each.startswith("_"))
            near = nearest(name, there)
            raise ConfigError(f"unknown {group} {shown(name)} (nearest: {near}); expected one of: {', '.join(there)}")


def check_files(folder: str) -> None:
    """Raise FileUnreadable for YAML files that expand to more values than fit into memory, before Hydra reads them."""
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        read_yaml(path)


def check_key(key: str, keys: Mapping[str, Names | None]) -> None:
    head, _, rest = key.partition(".")
    if head.split("/")[0] == "hydra":
        return
    if head not in keys:
        near = nearest(head, keys)
        raise ConfigError(f"unknown key {short(key)} (nearest: {near}); keys: {', '.join(keys)}")
    names = keys[head]
    if rest and names is not None and (first := rest.split(".")[0]) not in (known := list(names())):
        near = nearest(first, known)
        raise ConfigError(f"unknown key {short(key)} (nearest: {head}.{near}); {head} has: {', '.join(known)}")


def resolved(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, as stored with the results. Raises ConfigError.

    Environment variables are refused, since a secret in one of them would be stored.
    """
    OmegaConf.clear_resolver(ENVIRONMENT)
    OmegaConf.register_new_resolver(ENVIRONMENT, _refused)
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        if REFUSED in str(error):
            raise ConfigError(f"{key} {REFUSED}") from None
        raise ConfigError(f"{key} cannot be read: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply, or its interpolations are circular") from None
    finally:
        OmegaConf.clear_resolver(ENVIRONMENT)
        OmegaConf.register_new_resolver(ENVIRONMENT, oc.env)


REFUSED = (
    "reads an environment variable (${oc.env:...}), which could be a secret, and values are stored with the results;"
    " let the shell expand it if it is not secret: key=$NAME"
)


def _refused(*_: Any) -> Any:
    raise ConfigError(REFUSED)
