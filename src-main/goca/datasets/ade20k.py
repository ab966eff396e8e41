"""ADE20K, scene parsing (ADEChallengeData2016): 150 classes, label 0 for everything else."""

from __future__ import annotations

from goca.datasets.encodings import Encoding
from goca.datasets.folders import FolderDataset, Place

CLASSES = 150


class Ade20kDataset(FolderDataset):
    """ADEChallengeData2016."""

    tree = """\
    images/{list}/<id>.jpg           images
    annotations/{list}/<id>.png      0 unlabelled, 1-150 classes (or 255 unlabelled, 0-149 classes)"""
    whole = True
    image_places = (Place("images/{list}", ".jpg"), Place("images/{list}", ".png"))
    label_places = (Place("annotations/{list}", ".png", encodings=("0-150", "0-149")),)
    encodings = (
        Encoding.of("0-150", "0 unlabelled, 1-150 classes", {value: value for value in range(1, CLASSES + 1)}, [0]),
        Encoding.of("0-149", "0-149 classes, 255 unlabelled", {value: value + 1 for value in range(CLASSES)}, [255]),
    )
    strays = {  # noqa: RUF012
        "annotations*/*/*_seg.png": "This is the full ADE20K; get the scene parsing benchmark, ADEChallengeData2016"
    }
