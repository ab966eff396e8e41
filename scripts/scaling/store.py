"""What was measured of a model, kept by what it was measured with, so that larger sizes only add to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from goca.files.atomic import write_arrays, write_text

from scaling.points import Point


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def short_hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Store:
    """Files of one set of weights; each is named after what it holds and the settings that it depends on."""

    folder: Path

    @classmethod
    def of(cls, point: Point, out: Path) -> Store:
        folder = out / "points" / f"{point.name}-{digest(point)}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def arrays(
        self, name: str, settings: Any, measure: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        file = self.folder / f"{name}-{short_hash(settings)}.npz"
        if not file.exists():
            write_arrays(file, measure())
        return load_arrays(file)

    def facts(self, name: str, settings: Any, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self.folder / f"{name}-{short_hash(settings)}.json"
        if not file.exists():
            write_text(file, json.dumps(measure(), indent=1))
        return json.loads(file.read_text())


def digest(point: Point) -> str:
    """Of the weights: a model with others is measured anew."""
    seen = hashlib.sha256()
    for file in sorted(point.folder.glob("*/*.safetensors")):
        seen.update(file.read_bytes())
    return seen.hexdigest()[:16]
