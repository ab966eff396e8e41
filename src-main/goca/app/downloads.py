"""A result's files, as `goca segment` writes them, made when they are asked for."""

from __future__ import annotations

import zipfile
from pathlib import Path

from goca.app.drawing import Kept
from goca.cli.results import Places, write

KINDS = {"labels": "Label map (PNG)", "masks": "Masks (ZIP)", "record": "Record (JSON)"}  # and their buttons


def write_kind(kind: str, kept: Kept, threshold: float, folder: Path) -> Path:
    """One of KINDS, in the image's own size, in a folder that holds nothing else; returns the file."""
    place = Places(folder, kept.name)
    shown = kept.segmentation
    label = shown.label_map(kept.size, threshold)
    write(place, shown.image, shown, label, {**kept.record, "threshold": threshold})
    if kind == "masks":
        return zipped(place.masks)
    return place.labels if kind == "labels" else place.record


def zipped(folder: Path) -> Path:
    """FOLDER.zip, with the folder's files."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path
