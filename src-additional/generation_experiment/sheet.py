"""Draw the first images of several folders side by side, with their masks and guidance rates.

    python3 src-additional/generation_experiment/sheet.py 'folders=[runs/generation/sd15/cfg-5,...]' \\
        captions=coco_val2014_30k_captions.csv out=sheet.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from captions import read_captions
from diffusion_feature.images import read_image
from generate import SettingsError, parse, run
from goca.drawing.figures import save_figure
from goca.drawing.palettes import bright_palette
from goca.guidance.rate import HIGHEST, LOWEST
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from omegaconf import MISSING

CELL, LINE = 0.95, 0.2  # inches: an image, a line of text
GUIDES = ("tokens", "foreground", "rate")


@dataclass
class Settings:
    """folders: of generate.py, one column of images each;  count: rows;  out: a png, pdf or svg"""

    folders: list[str] = field(default_factory=list)
    captions: str = MISSING
    out: str = "sheet.png"
    count: int = 8


def main(arguments: Sequence[str]) -> None:
    settings = parse(Settings, arguments)
    captions = read_captions(settings.captions)
    folders = {Path(folder).name: Path(folder) for folder in settings.folders}
    print(save_figure(sheet(folders, captions, settings.count), settings.out, dpi=110))


def sheet(folders: dict[str, Path], captions: dict[str, str], count: int) -> Figure:
    """Draw one row per image that exists in every folder: tokens in colours, foreground white, rates on one scale."""
    there = [name for name in captions if all((folder / f"{name}.png").exists() for folder in folders.values())]
    if not there or not folders:
        raise SettingsError("the folders have no image in common")
    names = there[:count]
    columns = [(title, kind) for title, folder in folders.items() for kind in ("image", *guides_of(folder, names))]
    width, height = CELL * len(columns), (CELL + LINE) * len(names) + 2 * LINE
    drawn = Figure(figsize=(width, height))
    FigureCanvasAgg(drawn)
    for row, name in enumerate(names):
        top = 1 - (2 * LINE + row * (CELL + LINE)) / height
        drawn.text(0.004, top - (CELL + 0.5 * LINE) / height, captions[name], fontsize=6, va="center")
        for column, (title, kind) in enumerate(columns):
            axes = drawn.add_axes(
                (column / len(columns) + 0.002, top - CELL / height, 1 / len(columns) - 0.004, CELL / height)
            )
            axes.axis("off")
            show(axes, folders[title], name, kind)
            if row == 0:
                axes.set_title(title if kind == "image" else kind, fontsize=7, pad=3)
    return drawn


def guides_of(folder: Path, names: list[str]) -> Sequence[str]:
    return GUIDES if all((folder / "guidance" / f"{name}.npz").exists() for name in names) else ()


def show(axes: Any, folder: Path, name: str, kind: str) -> None:
    if kind == "image":
        axes.imshow(read_image(folder / f"{name}.png").image)
        return
    with np.load(folder / "guidance" / f"{name}.npz", allow_pickle=False) as kept:
        values = kept[kind]
    if kind == "tokens":
        axes.imshow(bright_palette()[values % 256], interpolation="nearest")
    elif kind == "foreground":
        axes.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(values, cmap="coolwarm", norm=TwoSlopeNorm(1, LOWEST, HIGHEST), interpolation="nearest")


if __name__ == "__main__":
    run(main)
