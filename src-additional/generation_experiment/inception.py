"""The Inception v3 network of FID as TensorFlow computed it in 2015, for the weights that pytorch-fid publishes.

Parts are named as in torchvision's inception_v3, so that the published state dict can be loaded. TensorFlow's graph
excludes padding from its averages, and its last block uses max pooling instead of average pooling.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from goca.errors import GocaError
from torch import Tensor, nn

SIDE, WIDTH = 299, 2048
FILE = "pt_inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"

Size = int | tuple[int, int]


class WeightsMissing(GocaError, FileNotFoundError):
    """The Inception weights are missing; the message says where they are expected."""


class Unit(nn.Module):
    """Convolution without bias, batch norm, relu."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, padding: Size = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Parallel chains of units, by the names of their parts; their outputs are concatenated.

    branches   prefix of each chain -> its units; a list stands for parallel units
    pool       pooling before the last branch: "average", "max", or "stride" (max pooling with stride 2, without units)
    """

    def __init__(self, units: dict[str, Unit], chains: list[list[str | tuple[str, ...]]], pool: str):
        super().__init__()
        for name, unit in units.items():
            self.add_module(name, unit)
        self.chains, self.pool = chains, pool

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self._chain(x, chain) for chain in self.chains]
        if self.pool == "stride":
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        pooled = F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*outputs, self.get_submodule("branch_pool")(pooled)], 1)

    def _chain(self, x: Tensor, chain: list[str | tuple[str, ...]]) -> Tensor:
        for part in chain:
            names = (part,) if isinstance(part, str) else part
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        return x


ROW, COLUMN = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}


def block_a(inputs: int, pooled: int) -> Branches:
    """35 x 35"""
    units = {
        "branch1x1": Unit(inputs, 64, 1),
        "branch5x5_1": Unit(inputs, 48, 1),
        "branch5x5_2": Unit(48, 64, 5, padding=2),
        "branch3x3dbl_1": Unit(inputs, 64, 1),
        "branch3x3dbl_2": Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": Unit(96, 96, 3, padding=1),
        "branch_pool": Unit(inputs, pooled, 1),
    }
    return Branches(units, [["branch1x1"], chain("branch5x5", 2), chain("branch3x3dbl", 3)], "average")


def block_b(inputs: int) -> Branches:
    """35 x 35 to 17 x 17"""
    units = {
        "branch3x3": Unit(inputs, 384, 3, 2),
        "branch3x3dbl_1": Unit(inputs, 64, 1),
        "branch3x3dbl_2": Unit(64, 96, 3, padding=1),
        "branch3x3dbl_3": Unit(96, 96, 3, 2),
    }
    return Branches(units, [["branch3x3"], chain("branch3x3dbl", 3)], "stride")


def block_c(inner: int, inputs: int = 768) -> Branches:
    """17 x 17"""
    units = {
        "branch1x1": Unit(inputs, 192, 1),
        "branch7x7_1": Unit(inputs, inner, 1),
        "branch7x7_2": Unit(inner, inner, **ROW),
        "branch7x7_3": Unit(inner, 192, **COLUMN),
        "branch7x7dbl_1": Unit(inputs, inner, 1),
        "branch7x7dbl_2": Unit(inner, inner, **COLUMN),
        "branch7x7dbl_3": Unit(inner, inner, **ROW),
        "branch7x7dbl_4": Unit(inner, inner, **COLUMN),
        "branch7x7dbl_5": Unit(inner, 192, **ROW),
        "branch_pool": Unit(inputs, 192, 1),
    }
    return Branches(units, [["branch1x1"], chain("branch7x7", 3), chain("branch7x7dbl", 5)], "average")


def block_d(inputs: int = 768) -> Branches:
    """17 x 17 to 8 x 8"""
    units = {
        "branch3x3_1": Unit(inputs, 192, 1),
        "branch3x3_2": Unit(192, 320, 3, 2),
        "branch7x7x3_1": Unit(inputs, 192, 1),
        "branch7x7x3_2": Unit(192, 192, **ROW),
        "branch7x7x3_3": Unit(192, 192, **COLUMN),
        "branch7x7x3_4": Unit(192, 192, 3, 2),
    }
    return Branches(units, [chain("branch3x3", 2), chain("branch7x7x3", 4)], "stride")


def block_e(inputs: int, pool: str) -> Branches:
    """8 x 8"""
    row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
    units = {
        "branch1x1": Unit(inputs, 320, 1),
        "branch3x3_1": Unit(inputs, 384, 1),
        "branch3x3_2a": Unit(384, 384, **row),
        "branch3x3_2b": Unit(384, 384, **column),
        "branch3x3dbl_1": Unit(inputs, 448, 1),
        "branch3x3dbl_2": Unit(448, 384, 3, padding=1),
        "branch3x3dbl_3a": Unit(384, 384, **row),
        "branch3x3dbl_3b": Unit(384, 384, **column),
        "branch_pool": Unit(inputs, 192, 1),
    }
    wide = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    double = [*chain("branch3x3dbl", 2), ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Branches(units, [["branch1x1"], wide, double], pool)


def chain(prefix: str, length: int) -> list[str | tuple[str, ...]]:
    return [f"{prefix}_{number}" for number in range(1, length + 1)]


class Inception(nn.Module):
    """Images [B, 3, 299, 299] in -1..1 -> features of the last average pooling [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (block_c(n) for n in (128, 160, 160, 192))
        self.Mixed_7a = block_d()
        self.Mixed_7b, self.Mixed_7c = block_e(1280, "average"), block_e(WIDTH, "max")

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))


def load_inception(path: str | Path | None = None) -> Inception:
    """Load the published weights from `path` or torch.hub's folder of checkpoints. Raises WeightsMissing."""
    place = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not place.is_file():
        raise WeightsMissing(f"no Inception weights at {place}; download {SOURCE} and give weights=FILE")
    state = torch.load(place, map_location="cpu", weights_only=True)
    network = Inception().eval()
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith(("fc.", "AuxLogits"))})
    return network
