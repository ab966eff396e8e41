"""Two protocols, eleven switches: what the equations say, and what the released evaluation computes.

A protocol is nothing but its switches. Both presets are bundles of them; any switch can be set alone, and every
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
    "self_map_rows": ("normalised", "as_resized"),  # rows of a resized self map: brought back to sum 1, or not
    "noise": ("nominal", "pipeline"),  # the timestep that `t` names, or the img2img strength arithmetic
    "token_spans": ("offsets", "search"),  # whose tokens: tokenizer offsets, or first occurrence of the text
    "void": ("ignore", "background"),  # label 255
    "absent_classes": ("skip", "zero"),  # a class with neither prediction nor label, in the mean
    "empty_class": ("zero", "nan"),  # a class whose tokens were all lost
    "caption_grammar": ("brackets", "first_group"),  # how "(wheel, car)" is read
    "posterior": ("mean", "sample"),  # what is taken from the VAE's posterior
    "seed": ("image", "none"),  # noise seeded from the image's id, or drawn afresh
    "palette_resize": ("rgb", "nearest"),  # palette images: to RGB and then resized, or resized by nearest neighbour
}
PRESETS = ("paper", "released")
ASK = ("complete", "open")  # whether a prompt names all that is there, or what is looked for: see docs/open.md


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
                raise ProtocolError(f"protocol.{switch} is {shown(value)}; it can be one of: {', '.join(values)}")

    @classmethod
    def of(cls, protocol: str | Mapping[str, str] | Protocol) -> Protocol:
        """From a preset's name, a mapping {"preset": ..., switch: value, ...}, or a Protocol (returned as it is)."""
        if isinstance(protocol, Protocol):
            return protocol
        if not isinstance(switches := cls.plain(protocol), Mapping):
            switches = {"preset": switches}
        preset, switches = switches.get("preset", "paper"), {**switches}
        switches.pop("preset", None)
        if preset not in PRESETS:
            raise ProtocolError(f"protocol {shown(preset)} is not known; there are: {', '.join(PRESETS)}")
        if unknown := [name for name in switches if name not in SWITCHES]:
            word, near = named(unknown[0]), nearest(unknown[0], SWITCHES)
            raise ProtocolError(f"protocol has no switch {word}; switches: {', '.join(SWITCHES)}; nearest: {near}")
        column = PRESETS.index(preset)
        return cls(**{switch: values[column] for switch, values in SWITCHES.items()} | switches)

    @classmethod
    def plain(cls, protocol: Any) -> Any:
        """A preset's name or switches, where a command line has read the value `nan` as a number."""
        return words(protocol) if isinstance(protocol, Mapping) else protocol

    @property
    def preset(self) -> str | None:
        """The preset that has exactly these switches, or None for a mixture."""
        return next((name for name in PRESETS if Protocol.of(name) == self), None)

    def to_dict(self) -> dict[str, str]:
        """Every switch by name, for result files."""
        return dataclasses.asdict(self)


def words(switches: Mapping[str, Any]) -> dict[str, Any]:
    """Switches and their values, where a command line has read the value `nan` as a number."""
    return {name: "nan" if isinstance(value, float) and value != value else value for name, value in switches.items()}
