"""The class of each pixel at every background threshold, computed once.

Class 0 is the background; its score b(T) depends on a threshold T and never falls when T rises. Every other class
has the score of its map, or 0 without a map. The highest score wins; ties go to the lowest class id; NaN counts as the
highest value. Three numbers therefore describe a pixel: its true class, the best class other than background, and
`wins`, the number of ascending thresholds at which that class beats the background: at threshold i iff i < wins.

An example: the background map has 0.3, the rule is b(T) = T + 0.3, the thresholds are -0.4, 0 and 0.4. A pixel whose
best class scores 0.5 beats -0.1 and 0.3 and loses to 0.7, so its `wins` is 2. `count_cells` shows two pixels.

Nearly all pixels are decided by fast float32 upsampling with a bounded error; pixels where a comparison is closer than
the bound are decided again by exact upsampling, so the result is exact everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from goca.evaluation.upsample import ERROR, Bilinear, Floats

BackgroundRule = Callable[[Floats, np.float32], Floats]
Numbers = NDArray[np.unsignedinteger]

# the background's score from its map [h, w] and the threshold
BACKGROUND_RULES: dict[str, BackgroundRule] = {
    "vanilla": lambda background, threshold: np.full_like(background, threshold),
    "max": lambda background, threshold: np.maximum(background, threshold),
    "exact": lambda background, threshold: background,
    "avg": lambda background, threshold: (threshold + background) / np.float32(2),
    "offset": lambda background, threshold: threshold + background,
}
LARGE = 1e30  # beyond it quick arithmetic could overflow
POINTS = 1 << 12  # pixels per batch that are decided again


def count_cells(
    scores: Floats,
    label: NDArray[np.integer],
    class_ids: Sequence[int],
    *,
    num_classes: int,
    background: str,
    thresholds: Sequence[float],
    ignore_index: int | None,
) -> NDArray[np.int64]:
    """Pixels of one image by (true class, best class, wins), from which the counts at every threshold follow.

    scores      [k+1, g, h]  float32; the last map is the background's
    label       [H, W]       class ids 0..num_classes-1, or ignore_index
    thresholds  ascending
    returns     [cells, 4]   rows (label, class, wins, pixels), pixels > 0

    A cat (class 1) scores 0.5 at its own pixel and 0.1 at a background pixel; the background map has 0.3 at both:

    >>> cat, background = [[0.5, 0.1]], [[0.3, 0.3]]
    >>> scores, label = np.array([cat, background], np.float32), np.array([[1, 0]])
    >>> settings = {"background": "offset", "thresholds": [-0.4, 0, 0.4], "ignore_index": None}
    >>> count_cells(scores, label, [1], num_classes=2, **settings)
    array([[0, 1, 1, 1],
           [1, 1, 2, 1]])

    The background's pixel is predicted as cat at one threshold, the cat's pixel at two.
    """
    best, wins, ids = decide(scores, label.shape, class_ids, num_classes, background, thresholds)
    levels = len(thresholds) + 1
    codes = pack(label, best, wins, num_classes, len(ids), levels, ignore_index)
    pixels = np.bincount(codes.ravel())[: num_classes * len(ids) * levels]  # ignored pixels have higher codes
    filled = np.flatnonzero(pixels)
    labels, places, won = unpack(filled, len(ids), levels)
    return np.stack([labels, ids[places], won, pixels[filled]], axis=1)


def pack(
    label: NDArray[np.integer],
    best: Numbers,
    wins: Numbers,
    num_classes: int,
    places: int,
    levels: int,
    ignore_index: int | None = None,
) -> Numbers:
    """One number per pixel, (label * places + best) * levels + wins, so that one bincount counts all three.

    best     0..places-1
    wins     0..levels-1
    returns  codes in the label's shape and the smallest possible dtype; ignored pixels have class num_classes

    >>> codes = pack(np.array([1, 2]), np.uint8([0, 1]), np.uint8([2, 3]), num_classes=3, places=2, levels=4)
    >>> codes.tolist()  # (1 * 2 + 0) * 4 + 2 and (2 * 2 + 1) * 4 + 3
    [10, 23]
    >>> [each.tolist() for each in unpack(codes, places=2, levels=4)]
    [[1, 2], [0, 1], [2, 3]]
    """
    codes = label.astype(np.min_scalar_type((num_classes + 1) * places * levels))
    if ignore_index is not None:
        codes[label == ignore_index] = num_classes
    codes *= codes.dtype.type(places * levels)
    codes += best.astype(codes.dtype) * codes.dtype.type(levels)
    codes += wins
    return codes


def unpack(
    codes: NDArray[np.integer], places: int, levels: int
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """(label, best, wins) of codes; the inverse of `pack`."""
    labels, rest = np.divmod(codes, places * levels)
    return labels, rest // levels, rest % levels


def decide(
    scores: Floats,
    size: tuple[int, ...],
    class_ids: Sequence[int],
    num_classes: int,
    background: str,
    thresholds: Sequence[float],
) -> tuple[Numbers, Numbers, NDArray[np.int64]]:
    """For every pixel [H, W]: the index in `ids` of the class with the highest score, and its number of wins.

    The third value is `ids`, ascending: `class_ids` and the first class without a map.
    """
    candidates = _candidates(class_ids, num_classes)
    nothing = np.zeros(scores.shape[1:], np.float32)
    maps = np.stack([*(nothing if index is None else scores[index] for _, index in candidates), scores[-1]])
    bilinear = Bilinear.between(len(scores), scores.shape[1:], *size)
    best = np.zeros(size, np.min_scalar_type(len(candidates)))
    wins = np.zeros(size, np.min_scalar_type(len(thresholds)))
    rule, levels = BACKGROUND_RULES[background], [np.float32(threshold) for threshold in thresholds]
    largest = np.abs(maps).max() + max(abs(level) for level in levels)
    if largest < LARGE:  # and no NaN
        for rows, block in bilinear.quickly(maps):
            best[rows], wins[rows], uncertain = _quick(block, rule, levels, np.float32(ERROR * largest))
            row, column = np.nonzero(uncertain)
            for part in range(0, len(row), POINTS):
                y, x = row[part : part + POINTS], column[part : part + POINTS]
                points = bilinear.at(maps, y + rows.start, x)
                best[rows][y, x], wins[rows][y, x] = _exact(points, rule, levels)
    else:
        with np.errstate(invalid="ignore"):  # 0 * inf
            for rows, block in bilinear.exactly(maps):
                best[rows], wins[rows] = _exact(block, rule, levels)
    return best, wins, np.array([class_id for class_id, _ in candidates])


def _candidates(class_ids: Sequence[int], num_classes: int) -> list[tuple[int, int | None]]:
    """(class id, index of its map), ascending, with the first class without a map (None), which scores 0."""
    known = {class_id: index for index, class_id in enumerate(class_ids)}
    absent = next((class_id for class_id in range(1, num_classes) if class_id not in known), None)
    return sorted([*known.items(), *([(absent, None)] if absent else [])], key=lambda candidate: candidate[0])


def _quick(
    maps: Floats, rule: BackgroundRule, levels: Sequence[np.float32], error: np.float32
) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """(best, wins, uncertain) from maps with an error of at most `error`; uncertain: where it could matter."""
    *classes, background = maps
    top = maps[:-1].max(axis=0)
    floor, ceiling = top - 2 * error, top + 2 * error
    best = np.zeros(top.shape, np.min_scalar_type(len(classes)))
    rivals = np.zeros_like(best)  # classes that may be the best
    for number, score in enumerate(classes):
        near = (score >= floor).view(np.uint8)
        rivals += near
        if number:
            best += near * best.dtype.type(number)  # the best one's number, where it has no rival
    may, must = (np.zeros(top.shape, np.min_scalar_type(len(levels))) for _ in range(2))
    for level in levels:
        score = rule(background, level)
        may += ceiling > score  # thresholds at which the class may win
        must += floor > score  # thresholds at which it wins whatever the error
    return best, may, (rivals != 1) | (may != must)


def _exact(maps: Floats, rule: BackgroundRule, levels: Sequence[np.float32]) -> tuple[Numbers, Numbers]:
    """(best, wins) from exact maps of the candidates and the background, of any trailing shape."""
    first, *others, background = maps
    best, top = np.zeros(first.shape, np.min_scalar_type(len(maps))), first
    for number, score in enumerate(others, start=1):
        best[_beats(score, top)] = number
        top = np.maximum(top, score)  # NaN stays NaN
    wins = np.zeros(first.shape, np.min_scalar_type(len(levels)))
    for level in levels:
        wins += _beats(top, rule(background, level))
    return best, wins


def _beats(challenger: Floats, holder: Floats) -> NDArray[np.bool_]:
    """challenger > holder, where NaN counts as the highest value and ties go to the holder."""
    return ~(challenger <= holder) & (holder == holder)
