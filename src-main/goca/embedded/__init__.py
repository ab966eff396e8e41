"""What ships inside the package: `mini-sd`, a small trained model, and two benchmarks, `scenes` and `scenes-hard`."""

from pathlib import Path

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
        raise FileNotFoundError(f"nothing embedded is called {name!r}; there are: {', '.join(names())}")
    return str(_FOLDER / name)
