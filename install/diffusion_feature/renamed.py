"""Names that have changed: the former ones go on working, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn_renamed(former: str, now: str) -> None:
    """FutureWarning that a name is now another, at the line that uses it."""
    warnings.warn(f"{former} is now called {now}", FutureWarning, stacklevel=3)


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`: former names give what has the present ones. Raises AttributeError for any other."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{module} has no {name!r}")
        warn_renamed(name, names[name])
        return getattr(sys.modules[module], names[name])

    return get
