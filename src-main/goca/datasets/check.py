"""Check a data set's folder: open every file, and list what is missing or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from goca.datasets.base import VOID, Dataset, DatasetConfig, Sample, SampleError

# what can be wrong with one image -> the fix
FIXES = {
    "no image": "unpack the archive of images again, or fetch the missing ones",
    "no label": "unpack the archive of labels again; if most are missing, it belongs to another split or year",
    "no annotation": "unpack the archive again; files in Annotations/ are missing or incomplete",
    "image that cannot be read": "fetch these images again",
    "label that cannot be used": "unpack the archive of labels into an empty folder, one kind only, and leave the files"
    " as they are: neither resized nor recoloured",
}


@dataclass
class Report:
    """The result of a check.

    listed    images in the list; looked_at  how many of them were opened
    expected  how many the list should have; empty: unknown
    found     problem (a key of FIXES) -> "id: reason" of each image
    classes   class id -> number of usable images that show it
    """

    listed: int
    expected: tuple[int, ...]
    looked_at: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[int, int] = field(default_factory=dict)
    void: float = 0.0  # share of unlabelled pixels

    @property
    def counts_match(self) -> bool:
        return not self.expected or self.listed in self.expected

    @property
    def ready(self) -> bool:
        return self.counts_match and not self.found and self.looked_at > 0

    def fixes(self) -> list[str]:
        """The fixes, most important first."""
        steps = [FIXES[kind] for kind in FIXES if kind in self.found]
        if not self.counts_match:
            wanted = " or ".join(map(str, self.expected))
            steps.insert(
                0,
                f"the list has {self.listed} images instead of {wanted}: take the list, or the folder, of"
                " the split that dataset.split names (docs/datasets.md)",
            )
        return steps


def examine(
    dataset: Dataset,
    config: DatasetConfig,
    limit: int | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Report:
    """Open every image and label of a data set.

    limit     only the first images of the list
    progress  wraps the ids
    Raises DatasetError if it is not clear which encoding the label files use.
    """
    expected: Any = config.images.get(config.listed, ())
    report = Report(len(dataset.ids), (expected,) if isinstance(expected, int) else tuple(expected))
    void = pixels = 0
    for image_id in progress(dataset.ids[:limit]):
        report.looked_at += 1
        sample, troubles = _looked_at(dataset, image_id)
        for kind, reason in troubles:
            report.found.setdefault(kind, []).append(f"{image_id}: {reason}" if reason else image_id)
        if sample is not None and not troubles:
            void, pixels = void + int(np.count_nonzero(sample.label == VOID)), pixels + sample.label.size
            for class_id in sample.present:
                report.classes[class_id] = report.classes.get(class_id, 0) + 1
    report.void = void / pixels if pixels else 0.0
    return report


def _looked_at(dataset: Dataset, image_id: str) -> tuple[Sample | None, list[tuple[str, str]]]:
    """One image, and (problem, reason) of everything that is wrong with it."""
    try:
        sample = dataset.sample(image_id)
    except SampleError as error:
        return None, [("no annotation", str(error))]
    return sample, list(_file_troubles(dataset, sample))


def _file_troubles(dataset: Dataset, sample: Sample) -> Iterator[tuple[str, str]]:
    has_image, has_label = sample.image_path.is_file(), sample.label_path.is_file()
    if not has_image:
        yield "no image", ""
    if not has_label:
        yield "no label", ""
    if has_image:
        try:
            sample.image  # noqa: B018
        except SampleError as error:
            yield "image that cannot be read", str(error)
            return
    if has_image and has_label:
        yield from _label_troubles(dataset, sample)


def _label_troubles(dataset: Dataset, sample: Sample) -> Iterator[tuple[str, str]]:
    try:
        values = np.unique(sample.label)
    except SampleError as error:
        yield "label that cannot be used", str(error)
        return
    if unknown := [int(value) for value in values if value != VOID and value >= len(dataset.class_names)]:
        yield "label that cannot be used", f"holds {unknown[:5]}, which are not classes"
