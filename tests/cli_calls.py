"""Calls of `goca segment` in this process, and what it writes."""

import json
from pathlib import Path

import numpy as np
from goca.cli import main
from PIL import Image


def segment(*arguments):
    return main(["segment", *map(str, arguments)])


def values(path):
    return np.asarray(Image.open(path))


def record(stem):
    return json.loads(Path(f"{stem}.json").read_text())


def refused(capsys, *arguments):
    """What a command says that cannot do what it was told: one line, no traceback, exit status 1."""
    assert segment(*arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def drawn(stem, size):
    """The overlay without its legend, at the image's own size   int [H, W, 3]"""
    height, width = size
    factor = -(-256 // max(size))  # small images are enlarged for the legend
    sheet = values(f"{stem}-overlay.png")
    assert sheet.shape[0] > factor * height and sheet.shape[1] >= factor * width
    return sheet[: factor * height : factor, : factor * width : factor].astype(int)


def painted(stem, image):
    """What the overlay should show: 65 % of the class's colour over greys, the image itself on background."""
    label, own = values(f"{stem}-labels.png")[..., None], np.asarray(image)
    grey = np.asarray(image.convert("L"))[..., None]
    found = own.astype(float)
    for row in record(stem)["classes"]:
        colour = np.array([int(row["colour"][n : n + 2], 16) for n in (1, 3, 5)])
        found = np.where((label == row["id"]) & (label > 0), 0.35 * grey + 0.65 * colour, found)
    return found
