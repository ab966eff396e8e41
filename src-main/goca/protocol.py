"""The two protocols and their eleven switches: `paper` (the equations) and `released` (the released evaluation).

A protocol is one value per switch. Both presets are sets of values; each switch can also be set on its own, and every
result file stores all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from goca.errors import GocaError
from goca.schema import named, nearest, shown

# switch -> (value under `paper`, value under `released`)
SWITCHES: dict[str, tuple[str, str]] = {
    "reference_channels": ("all", "first"),  # channels of the reference feature that enter softmax(FF^T / sqrt c)
    "self_map_rows": ("normalised", "as_resized"),  # rows of a resized self-attention map: rescaled to sum 1, or not
    "noise": ("nominal", "pipeline"),  # noise of the timestep `t`, or of the pipelines' img2img strength
    "token_spans": ("offsets", "search"),  # tokens belong to entities by offsets, or by first occurrence
    "void": ("ignore", "background"),  # pixels labelled 255
    "absent_classes": ("skip", "zero"),  # a class neither labelled nor predicted: not in the mean, or 0
    "empty_class": ("zero", "nan"),  # the map of a class whose tokens were all cut off
    "caption_grammar": ("brackets", "first_group"),  # how "(wheel, car)" is read
    "posterior": ("mean", "sample"),  # latents: mean of the VAE's posterior, or a sample
    "seed": ("image", "none"),  # noise is seeded from the image's id, or drawn without a seed
    "palette_resize": ("rgb", "nearest"),  # palette images: resized as RGB, or by nearest neighbour
}
PRESETS = ("paper", "released")
ASK = ("complete", "open")  # the prompt names everything in the image, or what to look for; docs/open.md


class ProtocolError(GocaError, ValueError):
    """An unknown preset, switch or value; the message lists the known ones."""


@dataclass(frozen=True)
class Protocol:
    """One value per switch. `Protocol.of("released")`, `Protocol.of({"preset": "released", "noise": "nominal"})`."""

    reference_channels: str = "all"
    self_map_rows: str = "normalised"
    noise: str = "nominal"
    token_spans: str = "offsets"
    void: str = "ignore"
    absent_classes: str = "skip"
    empty_class: str = "zero"
    caption_grammar: str = "brackets"
    posterior: str = "mean"
    seed: str = "image"
    palette_resize: str = "rgb"

    def __post_init__(self) -> None:
        for switch, values in SWITCHES.items():
            if (value := getattr(self, switch)) not in values:
                raise ProtocolError(f"protocol.{switch} is {shown(value)}; expected one of: {', '.join(values)}")

    @classmethod
    def of(cls, protocol: str | Mapping[str, str] | Protocol) -> Protocol:
        """Make a Protocol from a preset's name or a mapping {"preset": ..., switch: value, ...}."""
        if isinstance(protocol, Protocol):
            return protocol
        if not isinstance(switches := cls.plain(protocol), Mapping):
            switches = {"preset": switches}
        preset, switches = switches.get("preset", "paper"), {**switches}
        switches.pop("preset", None)
        if preset not in PRESETS:
            raise ProtocolError(f"unknown protocol {shown(preset)}; expected one of: {', '.join(PRESETS)}")
        if unknown := [name for name in switches if name not in SWITCHES]:
            word, near = named(unknown[0]), nearest(unknown[0], SWITCHES)
            raise ProtocolError(f"protocol has no switch {word}; switches: {', '.join(SWITCHES)}; nearest: {near}")
        column = PRESETS.index(preset)
        return cls(**{switch: values[column] for switch, values in SWITCHES.items()} | switches)

    @classmethod
    def plain(cls, protocol: Any) -> Any:
        """Return a preset's name or switches, turning a NaN that a command line parsed back into the word `nan`."""
        return words(protocol) if isinstance(protocol, Mapping) else protocol

    @property
    def preset(self) -> str | None:
        """The preset that has exactly these switches, or None for a mixture."""
        return next((name for name in PRESETS if Protocol.of(name) == self), None)

    def to_dict(self) -> dict[str, str]:
        """Return every switch by name, for result files."""
        return dataclasses.asdict(self)


def words(switches: Mapping[str, Any]) -> dict[str, Any]:
    """Return switches with each NaN that a command line parsed turned back into the word `nan`."""
    return {name: "nan" if isinstance(value, float) and value != value else value for name, value in switches.items()}
