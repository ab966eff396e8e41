"""Benchmarks in two folders, images and label files, matched by name; the labels define the present classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goca.datasets.base import DatasetConfig, DatasetError, DatasetNotFound, Sample, SampleError, class_table, pixels
from goca.datasets.encodings import Encoding, agreed_encoding, candidates, find_encoding
from goca.datasets.memory import remembered
from goca.files.text import read_lines

ENDING = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
READERS = 8  # label files that are read in parallel where all are read
LOOKED_AT = 48  # most label files that are opened to detect their encoding


@dataclass(frozen=True)
class Place:
    """A folder in which files of one kind may lie, and their naming: folder/ID + ending.

    folder     relative to the root; {list} is the split's list, a last part `*` matches any folder
    ids        pattern of an id
    encodings  of label files: names of the possible encodings; the first is the one that the folder's name suggests
    sure       whether the first is chosen where the values fit several encodings
    """

    folder: str
    ending: str
    ids: str = ".+"
    encodings: tuple[str, ...] = ()
    sure: bool = True

    def files(self, root: Path, listed: str) -> dict[str, Path]:
        """Map ids to files, ignoring hidden files as some archives hold. Raises DatasetError for duplicate ids."""
        pattern = f"{self.folder.format(list=listed)}/*{self.ending}"
        found = ((path.name.removesuffix(self.ending), path) for path in root.glob(pattern) if path.name[0] != ".")
        files: dict[str, Path] = {}
        for image_id, path in found:
            if not re.fullmatch(self.ids, image_id):
                continue
            if image_id in files:
                raise DatasetError(f"{path} and {files[image_id]} have the same name; remove one")
            files[image_id] = path
        return files

    def path(self, root: Path, listed: str, image_id: str) -> Path:
        """The path at which the file of that id is expected."""
        group = image_id.split("_")[0]  # Cityscapes: one folder per city
        return root / self.folder.format(list=listed).replace("*", group) / f"{image_id}{self.ending}"


class FolderDataset:
    """A benchmark in two folders. Raises DatasetNotFound with the expected tree.

    Subclasses say where files lie and what their numbers mean; the present classes are those of the label map.
    `place` and `encoding` hold what was found.
    """

    tree: str
    image_places: tuple[Place, ...]
    label_places: tuple[Place, ...]
    encodings: tuple[Encoding, ...]
    whole: bool = False  # whether all label files are read to decide the encoding
    strays: dict[str, str] = {}  # noqa: RUF012  files whose presence explains missing labels -> the fix

    def __init__(self, config: DatasetConfig) -> None:
        self.name, self.config = config.name, config
        self.listed = config.listed
        self.folder = config.folder(self.tree.format(list=self.listed))
        self.class_names = class_table(config.classes, self.folder)
        self._check_encoding()
        image_place, self.images = self._find(self.image_places, "images")
        wanted = [place for place in self.label_places if config.encoding in ("auto", *place.encodings)]
        self.place, self.labels = self._find(wanted, "labels")
        self.image_place = image_place
        self.ids = self._ids()
        if config.reverse:
            self.ids.reverse()

    def sample(self, image_id: str) -> Sample:
        """Return the sample of that id; its files are opened on first use."""
        return Sample(
            id=image_id,
            image_path=self.images.get(image_id) or self.image_place.path(self.folder, self.listed, image_id),
            label_path=self.labels.get(image_id) or self.place.path(self.folder, self.listed, image_id),
            read_label=self.read_label,
            sources=self.sources(),
        )

    def sources(self) -> list[Path]:
        """Further files that define what a label means."""
        return []

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label file as class ids [H, W]. Raises SampleError; DatasetError if the encoding is not clear."""
        encoding, values = self.encoding, self.values(path)
        try:
            label = encoding(values)
        except SampleError as error:
            raise SampleError(f"label {path.name} {error}") from None
        possible = self._possible()
        if len(possible) > 1:
            likely, certain = candidates(possible, _held(values))
            if certain and encoding.name not in likely:
                raise SampleError(
                    f"label {path.name} looks like {likely[0]!r}, but the other labels look like {encoding.name!r};"
                    f" if it has the same encoding, set dataset.encoding={encoding.name}"
                )
        return label

    @cached_property
    def encoding(self) -> Encoding:
        """The encoding of the label files: `dataset.encoding`, or detected from some of them."""
        possible = self._possible()
        if self.config.encoding != "auto":
            return possible[0]
        promised = possible[0].name if self.place.sure else None
        if not self.whole or len(possible) < 2:
            return find_encoding(possible, self._looked_at(), repr(self.name), promised)
        paths = sorted(self.labels.values())
        found = remembered(
            [*(each.name for each in possible), *map(str, paths)],
            paths,
            lambda: agreed_encoding(possible, self._held_by(paths), repr(self.name), promised).name,
        )
        return next(each for each in possible if each.name == found)

    @property
    def found(self) -> str:
        """A description of the label files, for messages. Raises DatasetError like `encoding`."""
        return f"{self.place.folder.format(list=self.listed)}/*{self.place.ending}: {self.encoding.about}"

    def values(self, path: Path) -> NDArray:
        """Read the numbers in a label file. Raises SampleError."""
        return pixels(path, modes=("P", "L"))

    def _ids(self) -> list[str]:
        return sorted(self.images.keys() | self.labels.keys())

    def _possible(self) -> list[Encoding]:
        known = {each.name: each for each in self.encodings}
        names = self.place.encodings if self.config.encoding == "auto" else (self.config.encoding,)
        return [known[name] for name in names]

    def _looked_at(self) -> Iterator[tuple[Path, Collection[int]]]:
        """Some label files and the values in them; unreadable ones are skipped, as errors of single images."""
        paths, readable, reason = sorted(self.labels.values()), 0, ""
        for path in paths[:: max(1, len(paths) // LOOKED_AT)][:LOOKED_AT]:
            try:
                values = _held(self.values(path))
            except SampleError as error:
                reason = str(error)
                continue
            readable += 1
            yield path, values
        if not readable and not self.place.sure:
            raise DatasetError(f"none of the labels of {self.name!r} that were opened can be used: {reason}")

    def _held_by(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Collection[int]]]:
        """All label files and the values in them, read in parallel; unreadable ones are skipped."""

        def held(path: Path) -> Collection[int] | None:
            try:
                return _held(self.values(path))
            except SampleError:
                return None

        with ThreadPoolExecutor(READERS) as pool:
            for path, values in zip(paths, pool.map(held, paths)):
                if values is not None:
                    yield path, values

    def _check_encoding(self) -> None:
        names = [each.name for each in self.encodings]
        if self.config.encoding not in ["auto", *names]:
            raise DatasetError(
                f"dataset.encoding={self.config.encoding!r} is not an encoding of {self.name!r};"
                f" expected one of: {', '.join(['auto', *names])}"
            )

    def _find(self, places: Sequence[Place], what: str) -> tuple[Place, dict[str, Path]]:
        for place in places:
            if files := place.files(self.folder, self.listed):
                return place, files
        tried = ", ".join(f"{place.folder.format(list=self.listed)}/*{place.ending}" for place in places)
        hint = "".join(f"\n{fix}" for pattern, fix in self.strays.items() if any(self.folder.glob(pattern)))
        raise DatasetNotFound(
            f"dataset.root={self.config.root} has no {what} (looked for {tried}); {self.name!r} expects\n"
            f"{self.tree.format(list=self.listed)}{hint or self._deeper(places)}"
        )

    def _deeper(self, places: Sequence[Place]) -> str:
        """A hint if the tree begins a folder or two above or below the root."""
        around = [self.folder.parent, *(path for path in sorted(self.folder.glob("*")) if path.is_dir())]
        for folder in around:
            if any(place.files(folder, self.listed) for place in places):
                return f"\nThe tree seems to begin elsewhere; try dataset.root={folder}"
        return ""


def _held(values: NDArray) -> list[int]:
    return [int(value) for value in np.flatnonzero(np.bincount(values.ravel()))]


def read_list(path: Path) -> list[str]:
    """Read the ids in a list file, one per line; an image's file extension is dropped.

    Raises DatasetError for ids with folders or flags, duplicate ids, and an empty list.
    """
    try:
        ids = read_lines(path)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text: {error}; expected one id per line") from None
    if flagged := next((line for line in ids if re.fullmatch(r"\S+\s+(-1|0|1)", line)), None):
        raise DatasetError(
            f"{path} lists {flagged!r}, a flag after the id, as in the lists of single classes (VOC's ImageSets/Main);"
            " expected bare ids, as in ImageSets/Segmentation/train.txt"
        )
    ids = [ENDING.sub("", each) for each in ids]
    if wrong := next((each for each in ids if each in (".", "..") or any(c in each for c in "/\\\0")), None):
        raise DatasetError(f"{path} lists {wrong!r}; expected bare ids, such as 2007_000027")
    if len(set(ids)) < len(ids):
        twin = next(each for each in ids if ids.count(each) > 1)
        raise DatasetError(f"{path} lists {twin!r} more than once; remove one")
    if not ids:
        raise DatasetError(f"{path} is empty; expected one id per line")
    return ids
