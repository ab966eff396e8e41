"""What the scaling study measures: models of the family at several checkpoints, and how the method is set to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedded.mini_family import KINDS
from goca.config import SegmenterConfig, load_config
from goca.embedded import names, resolve

CHECKPOINTS = ("first", "early", "middle", "advanced", "annealed", "late")


# cross-attention layers that a UNet's users pick by hand; none for transformers
PICKED_LAYERS = {
    kind: ("up-level0-repeat{0,1}-vit-block0-cross-map", "up-level1-repeat0-vit-block0-cross-map")
    for kind in ("mini-sd", "mini-sd-small")
}


@dataclass(frozen=True)
class Point:
    """One model at one checkpoint, in a pipeline folder."""

    kind: str
    checkpoint: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.checkpoint}"

    @property
    def worlds(self) -> tuple[str, ...]:
        """Those that it was trained on."""
        return tuple(KINDS[self.kind].worlds)

    def config(self, t: int, protocol: str | dict[str, str]) -> SegmenterConfig:
        """The model's own config, as far as it says which layers are looked at; rules and timestep are the study's."""
        own = load_config(self.kind)
        return SegmenterConfig(
            version=own.version,
            img_size=own.img_size,
            feat_size=own.feat_size,
            t=t,
            ref_layer=own.ref_layer,
            self_layers=own.self_layers,
            affinity_order=own.affinity_order,
            protocol=protocol,
        )


def find_points(models: Path, kinds: Sequence[str] = tuple(KINDS)) -> list[Point]:
    """The checkpoints in `models`/KIND/CHECKPOINT, and of each kind that ships its final one, in this order."""
    points = []
    for kind in kinds:
        for checkpoint in CHECKPOINTS:
            folder = models / kind / checkpoint
            if not (folder / "model_index.json").exists() and checkpoint == "late" and kind in names():
                folder = Path(resolve(f"goca:{kind}"))
            if (folder / "model_index.json").exists():
                points.append(Point(kind, checkpoint, folder))
    return points
