"""The folder of configs: inside an installed package, or next to the sources. Loads without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def config_folder() -> Path:
    """The folder configs/, with model/, dataset/, protocol/, ..."""
    here = Path(__file__).parent
    return next(path for path in (here / "configs", here.parents[1] / "configs") if path.is_dir())
