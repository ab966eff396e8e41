"""How well a run distinguishes present from absent classes: precision, recall, AUC.

presence = Presence(num_classes=21)
presence.update([Word(8, 0.91, True), Word(12, 0.04, False)], present=[8, 15])      # once per image
presence.precision(), presence.recall(), presence.auc()                             # 1.0, 0.5, 1.0
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from goca.evaluation.metrics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    MetricError,
    percentile_interval,
    ratio,
    resampled,
    resampling,
)

BINS = 10  # of the reliability curve
LEVELS = 1000  # of presence that the intervals of AUC tell apart
DIGITS = 6  # significant ones of a presence that are kept


class Word(NamedTuple):
    """A class that was looked for in an image.

    presence  estimated probability that the class is present, 0..1; None if the method has no such score
    taken     whether it was judged present
    """

    class_id: int
    presence: float | None
    taken: bool


class Presence:
    """Counts of words by truth and decision; precision, recall and AUC are computed from the counts.

    num_classes  classes of the data set, background (id 0) included
    outcomes     [classes, 2, 2]: images by class, by whether it is present, and by whether it was judged present;
                 a present class that was not looked for counts as judged absent
    offered      [classes]: in how many images each class was looked for
    levels       presence -> [absent, present]: number of words with exactly this presence
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.outcomes = np.zeros((num_classes, 2, 2), np.int64)
        self.offered = np.zeros(num_classes, np.int64)
        self.levels: dict[float, list[int]] = {}

    def update(self, words: Iterable[Word], present: Iterable[int]) -> None:
        """Count one image. `present`: ids of the classes that are in it. Raises MetricError."""
        words = [word._replace(presence=checked(word.presence)) for word in words]
        truth = self._ids(present)
        ids = [word.class_id for word in words]
        if len(set(ids)) < len(ids):
            raise MetricError(f"words of an image are {ids}; each class is looked for once")
        self._ids(ids)
        for class_id, presence, taken in words:
            self.offered[class_id] += 1
            self.outcomes[class_id, int(class_id in truth), int(taken)] += 1
            if presence is not None:
                level = self.levels.setdefault(presence, [0, 0])
                level[int(class_id in truth)] += 1
        for class_id in truth - set(ids):
            self.outcomes[class_id, 1, 0] += 1

    def merge(self, other: Presence) -> Presence:
        """Add another's counts to this one."""
        if other.num_classes != self.num_classes:
            raise MetricError(f"presence of {self.num_classes} and of {other.num_classes} classes cannot be merged")
        self.outcomes += other.outcomes
        self.offered += other.offered
        for presence, counts in other.levels.items():
            own = self.levels.get(presence, [0, 0])
            self.levels[presence] = [mine + theirs for mine, theirs in zip(own, counts)]
        return self

    def precision(self) -> float:
        """The share of words judged present that are present; NaN if there are none."""
        return float(ratio(self.outcomes[:, 1, 1].sum(), self.outcomes[:, :, 1].sum()))

    def recall(self) -> float:
        """The share of present classes that were judged present; NaN if there are none."""
        return float(ratio(self.outcomes[:, 1, 1].sum(), self.outcomes[:, 1].sum()))

    def auc(self) -> float:
        """How often a present word has a higher presence than an absent one; ties count half.

        NaN if there is no such pair.
        """
        return float(area_under_curve(*self._levels()[1]))

    def reliability(self) -> list[dict[str, Any]]:
        """Words by tenths of presence: their number, mean presence, and the share that is present."""
        scores, (absent, present) = self._levels()
        which = np.minimum((scores * BINS).astype(int), BINS - 1)
        found = []
        for number in range(BINS):
            here = which == number
            words = int((absent + present)[here].sum())
            found.append(
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "words": words,
                    "mean_presence": float((scores * (absent + present))[here].sum() / words) if words else None,
                    "present": float(present[here].sum() / words) if words else None,
                }
            )
        return found

    def _levels(self) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The different presences, ascending, and how many absent and present words have each."""
        scores = np.array(sorted(self.levels), np.float64)
        counts = np.array([self.levels[score] for score in scores], np.int64).reshape(-1, 2)
        return scores, (counts[:, 0], counts[:, 1])

    def _ids(self, class_ids: Iterable[int]) -> set[int]:
        found = set(class_ids)
        if wrong := [each for each in found if not 1 <= each < self.num_classes]:
            raise MetricError(f"class id {wrong[0]} of a word; expected 1..{self.num_classes - 1}")
        return found


def area_under_curve(absent: NDArray, present: NDArray) -> NDArray[np.float64]:
    """Area under the ROC curve from counts at ascending scores [..., levels] -> [...]; NaN without a pair.

    The share of pairs (present, absent) in which the present one has the higher score; ties count half.
    """
    lower = np.cumsum(absent, axis=-1) - absent / 2
    return ratio((present * lower).sum(axis=-1), present.sum(axis=-1) * absent.sum(axis=-1))


def auc_of_scores(absent: Sequence[float] | NDArray, present: Sequence[float] | NDArray) -> float:
    """`area_under_curve` of single scores: how often a present one is higher than an absent one; ties count half."""
    levels, which = np.unique(np.concatenate([absent, present]), return_inverse=True)
    counts = (np.bincount(each, minlength=len(levels)) for each in np.split(which, [len(absent)]))
    return float(area_under_curve(*counts))


def checked(presence: float | None) -> float | None:
    """A presence, rounded to DIGITS significant digits for counts and records. Raises MetricError."""
    if presence is None:
        return None
    if not 0 <= presence <= 1:  # NaN as well
        raise MetricError(f"presence is {presence}; expected a number from 0 to 1")
    return float(f"{presence:.{DIGITS}g}")


# --- a run's records ---------------------------------------------------------------------------------------------


def as_record(words: Sequence[Word], present: Sequence[int]) -> dict[str, Any]:
    """The entries of an image in a run's log: `words` as [class id, presence, taken], `present` as ids."""
    kept = [[int(class_id), checked(presence), int(taken)] for class_id, presence, taken in words]
    return {"words": kept, "present": [int(class_id) for class_id in present]}


def words_of(record: Mapping[str, Any]) -> list[Word]:
    """The words in a record of `as_record`."""
    return [Word(class_id, presence, bool(taken)) for class_id, presence, taken in record["words"]]


def summary(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """The entry on presence in results.json, from the images with recorded words; None if there are none.

    names  class id -> name
    Precision, recall and auc have 95 % bootstrap intervals over images; undefined values are None.
    """
    if not (records := [record for record in records if "words" in record]):
        return None
    total = Presence(len(names))
    for record in records:
        total.update(words_of(record), record["present"])
    values = {"precision": total.precision(), "recall": total.recall(), "auc": total.auc()}
    around = intervals(records)
    taken, present, right = total.outcomes[:, :, 1].sum(1), total.outcomes[:, 1].sum(1), total.outcomes[:, 1, 1]
    counts = {"offered": total.offered, "taken": taken, "present": present, "right": right}
    return {
        **{name: {"value": _number(value), "interval": around[name]} for name, value in values.items()},
        "words": {name: int(each.sum()) for name, each in counts.items()},
        "per_class": [
            {"id": class_id, "name": names[class_id], **{name: int(each[class_id]) for name, each in counts.items()}}
            for class_id in range(1, len(names))
        ],
        "reliability": total.reliability() if total.levels else None,
        "bootstrap": resampling(len(records)),
    }


def intervals(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float] | None]:
    """Percentile intervals of precision, recall and auc over bootstrap samples of the images."""
    right, taken, present = (np.zeros(len(records)) for _ in range(3))
    entries = []  # (presence, image, present)
    for image, record in enumerate(records):
        truth, words = set(record["present"]), words_of(record)
        right[image] = sum(word.taken and word.class_id in truth for word in words)
        taken[image], present[image] = sum(word.taken for word in words), len(truth)
        entries += [(w.presence, image, w.class_id in truth) for w in words if w.presence is not None]
    absent, there = histograms(entries, len(records))
    draws: dict[str, list[NDArray[np.float64]]] = {"precision": [], "recall": [], "auc": []}
    for weights in resampled(len(records), RESAMPLES, SEED):
        draws["precision"].append(ratio(weights @ right, weights @ taken))
        draws["recall"].append(ratio(weights @ right, weights @ present))
        draws["auc"].append(area_under_curve(weights @ absent, weights @ there))
    found = {name: percentile_interval(np.concatenate(values), CONFIDENCE) for name, values in draws.items()}
    return {name: None if math.isnan(low) else [low, high] for name, (low, high) in found.items()}


def histograms(
    entries: Sequence[tuple[float, int, bool]], images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absent and present words of each image at ascending presences, from (presence, image, present)   [images, levels]

    More than LEVELS different presences are merged, neighbours first.
    """
    scores, image, present = (np.array(column) for column in zip(*entries)) if entries else (np.zeros(0),) * 3
    different, level = np.unique(scores, return_inverse=True)
    levels = min(len(different), LEVELS)
    level = level * levels // max(len(different), 1)
    places = image.astype(int) * levels + level
    found = (np.bincount(places[present.astype(bool) == kept], minlength=images * levels) for kept in (False, True))
    absent, there = (counts.reshape(images, levels).astype(np.float64) for counts in found)
    return absent, there


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
