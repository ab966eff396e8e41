"""What the scaling study measures: models of the family at several checkpoints, and how the method is set to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedded.mini_family import KINDS
from embedded.pen import SIZE
from goca.config import SegmenterConfig
from goca.embedded import names, resolve

CHECKPOINTS = ("first", "early", "middle", "advanced", "late")


@dataclass(frozen=True)
class Setting:
    """How the method is set to a kind: in the middle of its layers, as the configs of the large models are.

    picked  cross-attention layers that a UNet's users pick by hand; none for transformers
    """

    version: str
    reference: str
    space: tuple[str, ...]
    picked: tuple[str, ...] = ()


UNET = Setting(
    "mini",
    "up-level1-repeat0-vit-block0-cross-q",
    ("up-level1-repeat0-vit-block0-self-map",),
    ("up-level0-repeat{0,1}-vit-block0-cross-map", "up-level1-repeat0-vit-block0-cross-map"),
)
SETTINGS = {
    "mini-sd": UNET,
    "mini-sd-small": UNET,
    "mini-pixart": Setting("pixart-sigma", "vit-block4-cross-q", ("vit-block{3..5}-self-map",)),
    "mini-flux": Setting("mini-flux", "vit-block3-attn-out", ("vit-block1-self-map",)),
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
        setting = SETTINGS[self.kind]
        return SegmenterConfig(
            version=setting.version,
            img_size=KINDS[self.kind].image_side,
            feat_size=SIZE // 4,
            t=t,
            ref_layer=setting.reference,
            self_layers=setting.space,
            affinity_order=1,
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
