"""Which class a pixel gets, for every background threshold at once.

Class 0 is the background; its score b(T) depends on a threshold T and never falls when T rises. Every other class
scores what its map says, and 0 if it has no map. The highest score wins; ties go to the lowest class id; NaN beats
everything. So one pixel is told by three numbers: its true class, the best class other than background, and `wins`:
at how many of the ascending thresholds that class beats the background. At threshold i it does so iff i < wins.

Nearly all pixels are decided by quick float32 upsampling, whose error is bounded; those where a comparison is closer
than the bound are decided again by exact upsampling, so that the result is the exact one everywhere.
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
POINTS = 1 << 12  # pixels that are decided again at once


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
    """Pixels of one image by (true class, best class, wins): all that any threshold's counts are made of.

    scores      [k+1, g, h]  float32; the last map is the background's
    label       [H, W]       class ids 0..num_classes-1, or ignore_index
    thresholds  ascending
    returns     [cells, 4]   rows (label, class, wins, pixels), pixels > 0
    """
    best, wins, ids = decide(scores, label.shape, class_ids, num_classes, background, thresholds)
    levels = len(thresholds) + 1
    limit = (num_classes + 1) * levels * len(ids)
    code = label.astype(np.min_scalar_type(limit))
    if ignore_index is not None:
        code[label == ignore_index] = num_classes
    code *= code.dtype.type(levels * len(ids))
    code += best.astype(code.dtype) * code.dtype.type(levels)
    code += wins
    pixels = np.bincount(code.ravel())[: num_classes * levels * len(ids)]  # what is ignored lies behind
    filled = np.flatnonzero(pixels)
    labels, rest = np.divmod(filled, levels * len(ids))
    return np.stack([labels, ids[rest // levels], rest % levels, pixels[filled]], axis=1)


def decide(
    scores: Floats,
    size: tuple[int, ...],
    class_ids: Sequence[int],
    num_classes: int,
    background: str,
    thresholds: Sequence[float],
) -> tuple[Numbers, Numbers, NDArray[np.int64]]:
    """For every pixel [H, W]: the place in `ids` of the class that scores best, and at how many thresholds it wins.

    The third value is `ids`, ascending: those of `class_ids` and the first class that has no map.
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
            close = _quick(block, best[rows], wins[rows], rule, levels, np.float32(ERROR * largest))
            row, column = np.nonzero(close)
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
    """(class id, index of its map), ascending, with the first class that has no map (None: it scores 0)."""
    known = {class_id: index for index, class_id in enumerate(class_ids)}
    absent = next((class_id for class_id in range(1, num_classes) if class_id not in known), None)
    return sorted([*known.items(), *([(absent, None)] if absent else [])], key=lambda candidate: candidate[0])


def _quick(
    maps: Floats, best: Numbers, wins: Numbers, rule: BackgroundRule, levels: Sequence[np.float32], error: np.float32
) -> NDArray[np.bool_]:
    """Write `best` and `wins`, from maps that may be wrong by `error`; True where that leaves them uncertain."""
    *classes, background = maps
    top = maps[:-1].max(axis=0)
    floor = top - 2 * error
    rivals = np.zeros(top.shape, best.dtype)
    for number, score in enumerate(classes):
        near = (score >= floor).view(np.uint8)
        rivals += near
        if number:
            best += near * best.dtype.type(number)
    close = rivals != 1
    ceiling, sure = top + 2 * error, np.zeros(top.shape, wins.dtype)
    for level in levels:
        score = rule(background, level)
        wins += ceiling > score  # thresholds at which the class may win
        sure += floor > score  # thresholds at which it must
    return close | (wins != sure)


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
    """challenger > holder where NaN counts as the highest value and ties stay with the holder."""
    return ~(challenger <= holder) & (holder == holder)
