"""Pseudo-labels: label maps of tagged photos, with doubtful pixels set to 255."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion_feature.images import ImageUnreadable, read_image

from goca.labelsets.decision import decide
from goca.labelsets.store import Store, open_batches
from goca.open import Query
from goca.open.finding import Finder
from goca.segmenter import Segmenter


@dataclass(frozen=True)
class Photo:
    """A photo: its file, the name of its results, and the class ids to look for."""

    path: Path
    name: str
    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class Labelling:
    """How photos are labelled.

    classes         id -> name
    doubt           see goca.labelsets.decision
    least_presence  with `known`, classes of lower presence are unsure; otherwise the segmenter's config drops them
    known           whether the classes of a photo are known to be present (tags); pixels of an unsure class are then
                    set to 255 instead of background
    """

    segmenter: Segmenter
    classes: Mapping[int, str]
    doubt: float = 0.1
    least_presence: float = 0.1
    known: bool = True

    @cached_property
    def finder(self) -> Finder:
        """One finder for all photos, which caches prompts: those of a vocabulary are the same for all."""
        return self.segmenter.finder()

    @cached_property
    def cut(self) -> frozenset[int]:
        """Classes whose names are too long for the text encoders."""
        return frozenset(each for each, name in self.classes.items() if self.finder.writer.cuts(name))

    def label(self, photos: Sequence[Photo], store: Store) -> list[dict[str, Any]]:
        """Write the label maps of a batch; a record per photo, with `skipped` for one that cannot be read."""
        read: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for photo in photos:
            try:
                read[photo.name] = read_image(photo.path)
            except ImageUnreadable as error:
                failed[photo.name] = str(error)
        usable = [photo for photo in photos if photo.name in read]
        queries = [Query.of({each: [self.classes[each]] for each in photo.class_ids}) for photo in usable]
        images = [read[photo.name].stored for photo in usable]
        answers = self.finder.answers(images, queries, image_ids=[photo.name for photo in usable]) if usable else ()
        records: dict[str, dict[str, Any]] = {}
        for photo, answer in zip(usable, answers):
            presence = dict(zip(answer.class_ids, answer.presence))
            unsure = self.unsure(presence)
            upright = read[photo.name].image
            size = (upright.height, upright.width)
            found = decide(answer.scores, [*answer.class_ids, 0], size, self.doubt, unsure)
            store.save_label(photo.name, found.label)
            records[photo.name] = {
                "name": photo.name,
                "classes": self.names(photo.class_ids),
                "unsure": self.names(unsure),
                "cut": self.names(sorted({*answer.lost, *self.cut.intersection(photo.class_ids)})),
                "doubt": round(found.doubt, 6),
                "areas": {self.classes[each]: round(area, 6) for each, area in found.areas.items() if area},
                "presence": {self.classes[each]: round(value, 4) for each, value in presence.items()},
            }
        for photo in photos:
            if photo.name in failed:
                skipped = {"name": photo.name, "classes": self.names(photo.class_ids), "skipped": failed[photo.name]}
                records[photo.name] = skipped
        return [records[photo.name] for photo in photos]

    def unsure(self, presence: Mapping[int, float]) -> list[int]:
        return [each for each, value in presence.items() if self.known and value < self.least_presence]

    def names(self, class_ids: Collection[int]) -> list[str]:
        return [self.classes[each] for each in class_ids]


def label_photos(
    labelling: Labelling, photos: Sequence[Photo], store: Store, batch: int, rank: int = 0, ranks: int = 1
) -> Iterator[dict[str, Any]]:
    """Label photos without a label map for these classes; yields each record when its file is written."""
    records = store.records()
    asked = {photo.name: labelling.names(photo.class_ids) for photo in photos}
    done = {name: record for name, record in records.items() if record.get("classes") == asked.get(name)}
    for photos_of_one in open_batches(photos, list(asked), done, batch, rank, ranks):
        for record in labelling.label(photos_of_one, store):
            store.add(record)
            yield record
