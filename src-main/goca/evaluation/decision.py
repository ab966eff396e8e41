"""Which class a pixel gets, for every background threshold at once.

Class 0 is the background; its score b(T) depends on a threshold T and never falls when T rises. Every other class
scores what its map says, and 0 if it has no map. The highest score wins; ties go to the lowest class id; NaN beats
everything. So one pixel is told by three numbers: its true class, the best class other than background, and `wins`:
at how many of the ascending thresholds that class beats the background. At threshold i it does so iff i < wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from goca.evaluation.upsample import Floats, upsampled_blocks

BackgroundRule = Callable[[Floats, np.float32], Floats]

# the background's score from its map [h, w] and the threshold
BACKGROUND_RULES: dict[str, BackgroundRule] = {
    "vanilla": lambda background, threshold: np.full_like(background, threshold),
    "max": lambda background, threshold: np.maximum(background, threshold),
    "exact": lambda background, threshold: background,
    "avg": lambda background, threshold: (threshold + background) / np.float32(2),
    "offset": lambda background, threshold: threshold + background,
}


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
    candidates = _candidates(class_ids, num_classes)
    levels = len(thresholds) + 1
    best, wins = _decide(scores, label.shape, [index for _, index in candidates], background, thresholds)
    code = (label if ignore_index is None else np.where(label == ignore_index, num_classes, label)).astype(np.int64)
    code *= levels * len(candidates)
    code += (best.astype(np.uint32) * levels + wins).astype(np.int64)
    pixels = np.bincount(code.ravel())[: num_classes * levels * len(candidates)]  # what is ignored lies behind
    filled = np.flatnonzero(pixels)
    labels, rest = np.divmod(filled, levels * len(candidates))
    ids = np.array([class_id for class_id, _ in candidates])
    return np.stack([labels, ids[rest // levels], rest % levels, pixels[filled]], axis=1)


def _candidates(class_ids: Sequence[int], num_classes: int) -> list[tuple[int, int | None]]:
    """(class id, index of its map), ascending, with the first class that has no map (None: it scores 0)."""
    known = {class_id: index for index, class_id in enumerate(class_ids)}
    absent = next((class_id for class_id in range(1, num_classes) if class_id not in known), None)
    return sorted([*known.items(), *([(absent, None)] if absent else [])], key=lambda candidate: candidate[0])


def _decide(
    scores: Floats,
    size: tuple[int, ...],
    candidates: Sequence[int | None],
    background: str,
    thresholds: Sequence[float],
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]:
    """For every pixel [H, W]: which candidate scores best, and at how many thresholds it beats the background."""
    rule = BACKGROUND_RULES[background]
    beats = np.greater if np.isfinite(scores).all() else _beats_with_nan
    best = np.zeros(size, np.min_scalar_type(len(candidates)))
    wins = np.zeros(size, np.min_scalar_type(len(thresholds)))
    for rows, maps in upsampled_blocks(scores, *size):
        first, *others = (np.float32(0) if index is None else maps[index] for index in candidates)
        top = np.broadcast_to(first, maps.shape[1:])
        for number, score in enumerate(others, start=1):
            better = beats(score, top)
            np.maximum(best[rows], better * best.dtype.type(number), out=best[rows])  # numbers only rise
            top = np.maximum(top, score)  # NaN stays NaN
        for threshold in thresholds:
            wins[rows] += beats(top, rule(maps[-1], np.float32(threshold)))
    return best, wins


def _beats_with_nan(challenger: Floats | np.float32, holder: Floats) -> NDArray[np.bool_]:
    """challenger > holder where NaN counts as the highest value and ties stay with the holder."""
    return ~(challenger <= holder) & (holder == holder)
