"""Warn when a dependency is newer than the versions that were tried."""

from __future__ import annotations

import re
import warnings
from importlib import metadata

TRIED = {"diffusers": (0, 42)}  # package -> newest major and minor version in constraints.txt


class NewerThanTried(UserWarning):
    """A dependency is newer than the versions that GoCA was tried with."""


def warn_if_newer(package: str) -> None:
    """Issue NewerThanTried if the installed `package` is newer than TRIED; do nothing if it is not installed."""
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return
    numbers = re.match(r"(\d+)\.(\d+)", installed)
    newest = TRIED[package]
    if numbers and (int(numbers[1]), int(numbers[2])) > newest:
        warnings.warn(
            f"{package} {installed} is newer than {newest[0]}.{newest[1]}, the newest that GoCA was tried with. "
            f"If something fails, install the tried version: pip install '{package}=={newest[0]}.{newest[1]}.*'",
            NewerThanTried,
            stacklevel=3,
        )
