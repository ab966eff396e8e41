"""Options of commands under their former names, which keep working with a warning."""

from __future__ import annotations

import argparse
from typing import Any

from diffusion_feature.renamed import warn_renamed


class Renamed(argparse.Action):
    """The former name of an option: sets the same value, with a FutureWarning that names the present option.

    With `nargs=0, const=VALUE` a former flag, which set the present option to that value.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--figure")
    >>> _ = parser.add_argument("--picture", action=Renamed, now="--figure")
    """

    def __init__(self, option_strings: list[str], dest: str, now: str, **options: Any) -> None:
        options |= {"dest": now.lstrip("-").replace("-", "_"), "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        super().__init__(option_strings, **options)
        self.now = now

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        value = values if self.const is None else self.const
        now = self.now if self.const is None else f"{self.now} {self.const}"
        warn_renamed(str(option_string), now)
        setattr(namespace, self.dest, value)
