"""The files of a result, as `goca segment` writes them, created on demand."""

from __future__ import annotations

import zipfile
from pathlib import Path

from goca.app.drawing import Kept
from goca.cli.results import Places, write

KINDS = {
    "labels": "Label map (PNG)",
    "masks": "Masks (ZIP)",
    "record": "Record (JSON)",
}  # kind -> the label of its button


def write_kind(kind: str, kept: Kept, threshold: float, folder: Path) -> Path:
    """Write one of KINDS, at the original image's size, into an empty folder; returns the file."""
    place = Places(folder, kept.name)
    shown = kept.segmentation
    label = shown.label_map(kept.size, threshold)
    write(place, shown.image, shown, label, {**kept.record, "threshold": threshold})
    if kind == "masks":
        return zipped(place.masks)
    return place.labels if kind == "labels" else place.record


def zipped(folder: Path) -> Path:
    """Write FOLDER.zip with the folder's files; returns its path."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path
