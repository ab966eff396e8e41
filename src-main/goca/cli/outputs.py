"""Where `goca segment` puts its results: files per image, a folder per format, or standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from goca.cli.results import Places, write
from goca.errors import GocaError
from goca.files.atomic import whole_file, write_png
from goca.formats import FORMATS, Labelled, chosen_formats
from goca.formats.coco import library
from goca.formats.item import VOID
from goca.segmentation import BACKGROUND, Segmentation, label_image

PLAIN = "plain"  # the files described in goca.cli.segment
ALIASES = {"cutout": "cutouts"}
FREE = VOID - 1  # class ids of an 8-bit label map besides background and void


class OutputRefused(GocaError, ValueError):
    """Results that cannot be written in the requested form."""


@dataclass(frozen=True)
class Done:
    """A segmented image.

    path   the image's file
    label  class ids   [H, W]
    whole  whether the file itself is the image, rather than one of its frames
    """

    path: Path
    place: Places
    image: Image.Image
    segmentation: Segmentation
    label: Tensor
    record: Mapping[str, Any]
    whole: bool = True


class Output(Protocol):
    """One kind of results."""

    def add(self, done: Done) -> str:
        """Add an image; returns the files written for it, "" if none yet."""
        ...

    def finish(self) -> Iterable[str]:
        """Write the files that need all images; returns lines to print about them."""
        ...


def chosen_output_formats(given: str) -> list[str]:
    """The format names in a text such as "plain,coco". Raises FormatError, FormatMissing."""
    names = [ALIASES.get(name, name) for text in given.split(",") if (name := text.strip().lower())]
    known = chosen_formats([name for name in names if name != PLAIN])
    if any(name.startswith("coco") for name in known):
        library()
    return list(dict.fromkeys(names))


def outputs(formats: Sequence[str], folder: Path, scores: bool, images: int, stream: bool) -> list[Output]:
    """The outputs that the arguments ask for.

    formats  names from `chosen_output_formats`
    scores   whether score maps are written
    images   number of images;  stream  whether the result goes to standard output
    raises   OutputRefused
    """
    if stream:
        if images > 1 or list(formats) != [PLAIN]:
            what = f"{images} images" if images > 1 else f"--format {','.join(formats)}"
            raise OutputRefused(
                f"--out - can write one label map (or with --scores one array), not {what}; give --out FOLDER"
            )
        return [StandardOutput(scores)]
    sets = [name for name in formats if name != PLAIN]
    return [
        *([ScoreFiles()] if scores else []),
        *([PlainFiles(scores)] if PLAIN in formats else []),
        *([FormatFolders(sets, folder)] if sets else []),
    ]


class PlainFiles:
    """Overlay, label map, masks and JSON of each image. scores: whether ScoreFiles writes the arrays."""

    def __init__(self, scores: bool) -> None:
        self.scores = scores

    def add(self, done: Done) -> str:
        place = done.place
        more = {"scores": place.scores.name, "maps": done.segmentation.names} if self.scores else {}
        write(place, done.image, done.segmentation, done.label, {**done.record, **more})
        return f"{place.overlay}, {place.labels.name}, {place.record.name}, {place.masks.name}/"

    def finish(self) -> Iterable[str]:
        return ()


class ScoreFiles:
    """The score maps of each image as an array   [n, g, g] float32; NAME.json names the maps."""

    def add(self, done: Done) -> str:
        with whole_file(done.place.scores) as temporary:
            temporary.write_bytes(scores_bytes(done.segmentation))
        return str(done.place.scores)

    def finish(self) -> Iterable[str]:
        return ()


class StandardOutput:
    """The label map as a PNG, or the scores as .npy, on standard output."""

    def __init__(self, scores: bool) -> None:
        self.scores = scores

    def add(self, done: Done) -> str:
        stream = io.BytesIO()
        if self.scores:
            stream.write(scores_bytes(done.segmentation))
        else:
            label_image(done.label).save(stream, format="PNG")
        sys.stdout.buffer.write(stream.getvalue())
        sys.stdout.buffer.flush()
        return "standard output"

    def finish(self) -> Iterable[str]:
        return ()


class FormatFolders:
    """One folder per format with all images; a class name has the same id, from 1, in every image.

    Label maps are kept in a temporary folder until the end, since formats list the classes first.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.folder = names, folder
        self.ids: dict[str, int] = {}
        self.items: list[Labelled] = []
        self._waiting = TemporaryDirectory(prefix="goca-")

    def add(self, done: Done) -> str:
        folder, stem = Path(self._waiting.name), done.place.stem
        label = write_png(folder / f"{stem}-label.png", Image.fromarray(self.renumbered(done)))
        image = done.path if done.whole else write_png(folder / f"{stem}-image.png", done.image)
        self.items.append(Labelled(stem, partial(read_bytes, label), image))
        return ""

    def renumbered(self, done: Done) -> np.ndarray:
        """The label map with the set's class ids   uint8 [H, W]. Raises OutputRefused for too many classes."""
        table = np.zeros(max(done.segmentation.class_ids) + 1, np.uint8)
        for class_id, name in done.segmentation.classes().items():
            if class_id == BACKGROUND:
                continue
            number = self.ids.setdefault(name, len(self.ids) + 1)
            if number > FREE:
                raise OutputRefused(f"the images have more than {FREE} classes; write fewer images into one set")
            table[class_id] = number
        return table[done.label.numpy()]

    def finish(self) -> Iterable[str]:
        classes = {number: name for name, number in self.ids.items()}
        try:
            for name in self.names if self.items else ():
                FORMATS[name](self.folder / name, self.items, classes)
                yield f"{self.folder / name}: format {name}, images: {len(self.items)}, classes: {len(classes)}"
        finally:
            self._waiting.cleanup()


def scores_bytes(segmentation: Segmentation) -> bytes:
    stream = io.BytesIO()
    np.save(stream, segmentation.scores.detach().float().cpu().numpy())
    return stream.getvalue()


def read_bytes(path: Path) -> np.ndarray:
    """Read an 8-bit label map   uint8 [H, W]"""
    with Image.open(path) as image:
        return np.asarray(image)
