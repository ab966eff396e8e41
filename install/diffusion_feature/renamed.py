"""Names that have changed: the former ones go on working, with a warning."""

from __future__ import annotations

import warnings


def warn_renamed(former: str, now: str) -> None:
    """FutureWarning that a name is now another, at the line that uses it."""
    warnings.warn(f"{former} is now called {now}", FutureWarning, stacklevel=3)
