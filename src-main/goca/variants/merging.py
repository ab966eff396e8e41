"""Settings of map merging (`goca.variants.regions`). Loads without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from goca.schema import ConfigError, shown


@dataclass(frozen=True)
class Merging:
    """How self-attention is merged; see `goca.refine.merge_proposals`."""

    threshold: float = 2e-4
    stride: int = 4
    rounds: int = 3

    def __post_init__(self) -> None:
        numbers = all(isinstance(each, int) and not isinstance(each, bool) for each in (self.stride, self.rounds))
        number = isinstance(self.threshold, float | int) and not isinstance(self.threshold, bool)
        if not numbers or not min(self.stride, self.rounds) >= 1 or max(self.stride, self.rounds) > 10**6 or not number:
            found = ", ".join(f"{name}: {shown(value)}" for name, value in vars(self).items())
            raise ConfigError(f"merging is {found}; expected a threshold, and whole numbers of at least 1")
        if not 0 <= self.threshold < 1e300:
            raise ConfigError(f"merging.threshold is {shown(self.threshold)}; it must be a finite number of at least 0")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Merging:
        """From a mapping of fields. Raises ConfigError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values := {} if values is None else values, Mapping):
            raise ConfigError(f"merging is {shown(values)}; expected a mapping of {', '.join(names)}")
        if unknown := [key for key in values if key not in names]:
            raise ConfigError(f"merging has no {shown(unknown[0])}; expected one of: {', '.join(names)}")
        return cls(**values)
