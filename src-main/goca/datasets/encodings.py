"""What the numbers in label files mean: one table per encoding in circulation, and how it is detected."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goca.datasets.base import TABLES, VOID, DatasetError, SampleError

UNKNOWN = 254  # in a table: a value that does not occur in this encoding
SIZE = 2**16  # label files hold eight or sixteen bits
FEW = 0.05  # share of files that may contradict the encoding chosen for all
ENOUGH = 12  # stop after this many files whose values fit a single encoding


@dataclass(frozen=True, eq=False)
class Encoding:
    """One encoding of classes as numbers.

    name, about  its name in `dataset.encoding`; a description for messages
    table        [65536] value -> class id, VOID or UNKNOWN
    unused       values with a meaning that no published file holds; finding one counts against this encoding
    unusual      the same, with less weight
    usual        values that nearly every file holds; a missing one counts against this encoding, with less weight
    """

    name: str
    about: str
    table: NDArray[np.uint8]
    unused: frozenset[int] = frozenset()
    unusual: frozenset[int] = frozenset()
    usual: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        name: str,
        about: str,
        classes: Mapping[int, int],
        void: Iterable[int] = (),
        *,
        unused: Iterable[int] = (),
        unusual: Iterable[int] = (),
        usual: Iterable[int] = (),
    ) -> Encoding:
        """Make an encoding from value -> class id, and the values without a class."""
        table = np.full(SIZE, UNKNOWN, np.uint8)
        table[list(void)] = VOID
        table[list(classes)] = list(classes.values())
        return cls(name, about, table, frozenset(unused), frozenset(unusual), frozenset(usual))

    def __call__(self, values: NDArray) -> NDArray[np.uint8]:
        """Decode values [H, W] (uint8 or uint16) to class ids [H, W]. Raises SampleError for unknown values."""
        label = np.take(self.table, values)
        if (label == UNKNOWN).any():
            found = sorted({int(value) for value in np.unique(values) if self.table[value] == UNKNOWN})
            raise SampleError(f"holds the values {found[:5]}, which do not occur in labels of the kind {self.name!r}")
        return label

    def against(self, values: Collection[int]) -> tuple[int, int, int]:
        """Evidence against this encoding in a file with these values: how many are unknown, unused, unusual."""
        known = {value for value in values if self.table[value] != UNKNOWN}
        odd = len(known & self.unusual) + len(self.usual.difference(values))
        return len(values) - len(known), len(known & self.unused), odd


def label_values(table: str) -> list[list[int]]:
    """Read class id -> its values in label files, from the packaged table of that name."""
    return json.loads((TABLES / f"{table}.values.json").read_text(encoding="utf-8"))


def by_value(values: Sequence[Sequence[int]], shift: int = 0) -> dict[int, int]:
    """Invert class id -> values to value -> class id."""
    return {value + shift: class_id for class_id, row in enumerate(values) for value in row}


def find_encoding(
    encodings: Sequence[Encoding], files: Iterable[tuple[Path, Collection[int]]], what: str, promised: str | None = None
) -> Encoding:
    """Detect which of several encodings label files use, from the values that they hold.

    files     paths and the values in them, read until the answer is clear
    what      the data set's name, for messages
    promised  the encoding to choose where the values fit several
    Raises DatasetError if many files disagree, if most fit no encoding, or if the values leave it open.
    """
    strong: dict[str, list[Path]] = {}
    weak: set[str] = set()
    unfitting: list[tuple[Path, Collection[int]]] = []
    looked_at = 0
    for path, values in files:
        looked_at += 1
        fitting, certain = candidates(encodings, values)
        if not fitting:
            unfitting.append((path, values))
        elif len(fitting) == 1 and certain:
            strong.setdefault(fitting[0], []).append(path)
        elif len(fitting) == 1:
            weak.add(fitting[0])
        if sum(map(len, strong.values())) == ENOUGH:
            break
    if 2 * len(unfitting) > looked_at:
        raise DatasetError(_unfitting(*unfitting[0], encodings, what))
    name = _voted(strong, what) or (next(iter(weak)) if len(weak) == 1 else promised)
    if (found := next((each for each in encodings if each.name == name), None)) is None:
        raise _unclear(encodings, what)
    return found


def _voted(votes: Mapping[str, list[Path]], what: str) -> str | None:
    """The encoding of nearly all files; a few others count as errors of those images. Raises DatasetError if mixed."""
    name = max(votes, key=lambda each: len(votes[each]), default=None)
    if name and len(votes[name]) * 4 < sum(map(len, votes.values())) * 3:
        ordered = sorted(votes, key=lambda each: each != name)
        raise _mixed(what, {each: votes[each][0] for each in ordered})
    return name


def agreed_encoding(
    encodings: Sequence[Encoding], files: Iterable[tuple[Path, Collection[int]]], what: str, promised: str | None = None
) -> Encoding:
    """Detect the one encoding that all label files use; arguments as for `find_encoding`.

    If several are left, files that lack the usual values of an encoding (`Encoding.usual`) count against it; after that
    `promised` decides. Raises DatasetError if no encoding fits all files, or if files point to different ones.
    """
    left = {each.name: each for each in encodings}
    narrowed: dict[str, Path] = {}  # excluded encodings -> the first file that they do not fit
    votes: list[tuple[Path, list[str]]] = []
    unfitting: list[tuple[Path, Collection[int]]] = []
    looked_at = 0
    for path, values in files:
        looked_at += 1
        marks = {each.name: each.against(values) for each in encodings}
        fitting = _least({name: unused for name, (unknown, unused, _) in marks.items() if not unknown})
        if not fitting:
            unfitting.append((path, values))
            continue
        if not left.keys() & set(fitting):
            raise _mixed(what, {next(iter(left)): next(iter(narrowed.values())), fitting[0]: path})
        narrowed |= {name: path for name in left if name not in fitting}
        left = {name: each for name, each in left.items() if name in fitting}
        likely = _least({name: marks[name][2] for name in fitting})
        if len(likely) < len(fitting):
            votes.append((path, likely))
    if 2 * len(unfitting) > looked_at:
        raise DatasetError(_unfitting(*unfitting[0], encodings, what))
    counts = {name: sum(name in likely for _, likely in votes) for name in left}
    best = [name for name in left if counts[name] == max(counts.values())]
    name = promised if promised in best else best[0]
    against = [(path, likely) for path, likely in votes if name not in likely]
    if len(against) > FEW * len(votes):
        path, likely = against[0]
        others = (*(each for each, names in votes if name in names), *narrowed.values(), path)
        raise _mixed(what, {name: others[0], likely[0]: path})
    if len(best) > 1 and promised not in best:
        raise _unclear(encodings, what)
    return left[name]


def _mixed(what: str, seen: Mapping[str, Path]) -> DatasetError:
    said = "; ".join(f"{path.name} looks like {name!r}" for name, path in seen.items())
    return DatasetError(
        f"the labels of {what} are mixed: {said}. Unpack one kind into an empty folder, or, if you are sure, set"
        f" dataset.encoding={next(iter(seen))}"
    )


def _unclear(encodings: Sequence[Encoding], what: str) -> DatasetError:
    kinds = "; ".join(f"{each.name} ({each.about})" for each in encodings)
    return DatasetError(f"the labels of {what} fit more than one encoding; set dataset.encoding to one of: {kinds}")


def candidates(encodings: Sequence[Encoding], values: Collection[int]) -> tuple[list[str], bool]:
    """The encodings that one file's values fit best, and whether more than unusual values supports them."""
    marks = {each.name: each.against(values) for each in encodings}
    fitting = _least({name: unused for name, (unknown, unused, _) in marks.items() if not unknown})
    if len(fitting) < 2:
        return fitting, True
    return _least({name: marks[name][2] for name in fitting}), False


def _least(marks: Mapping[str, int]) -> list[str]:
    return [name for name, mark in marks.items() if mark == min(marks.values())]


def _unfitting(path: Path, values: Collection[int], encodings: Sequence[Encoding], what: str) -> str:
    kinds = "; ".join(f"{each.name} ({each.about})" for each in encodings)
    odd = sorted(value for value in values if all(each.table[value] == UNKNOWN for each in encodings))
    because = f"the values {odd[:5]}, which no known encoding has" if odd else "values that no single encoding has"
    return f"{path} is not a label of {what}: it holds {because}; known encodings: {kinds}"
