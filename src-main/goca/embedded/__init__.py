"""What ships inside the package: `mini-sd`, a small trained model, and two benchmarks, `scenes` and `scenes-hard`."""

from pathlib import Path
from typing import Any

PREFIX = "goca:"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """What is embedded, by name."""
    return sorted(entry.name for entry in _FOLDER.iterdir() if entry.is_dir() and not entry.name.startswith("_"))


def resolve(location: str) -> str:
    """`goca:NAME` becomes the folder of that embedded model or data set; any other location is returned as it is."""
    if not location.startswith(PREFIX):
        return location
    name = location.removeprefix(PREFIX)
    if name not in names():
        raise FileNotFoundError(
            f"there is no embedded model or data set {name!r}; expected one of: {', '.join(names())}"
        )
    return str(_FOLDER / name)


def embedded_pipeline(name: str = "mini-sd", **arguments: Any) -> Any:
    """An embedded model as the diffusers pipeline that it is, in float32 unless `dtype` says otherwise.

    name       "mini-sd" or another of `names()`
    arguments  go to `DiffusionPipeline.from_pretrained`
    raises     FileNotFoundError for a name that is not embedded

    >>> pipe = embedded_pipeline()  # doctest: +SKIP
    >>> pipe("star, sky, grass").images[0].size  # doctest: +SKIP
    (64, 64)
    """
    from diffusers import DiffusionPipeline  # only now: names and folders are asked for without it

    return DiffusionPipeline.from_pretrained(resolve(f"{PREFIX}{name}"), **arguments)
