"""From what was measured to values with intervals, rank correlations, and gains by group and by switch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from embedded import scenes_hard
from goca.evaluation.metrics import class_iou, mean_iou
from make_scenes import WORLDS
from scipy.stats import rankdata

from scaling.measures import scene, shown
from scaling.segmentation import ACTING, absent_rule

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src-additional/generation_experiment"))

from distances import Statistics, frechet_distance, statistics

DRAWS = 500  # of the bootstrap
METHODS = ("vanilla", "GoCA")


@dataclass(frozen=True)
class Measured:
    """One number of one point: its value, and one value for each draw of the bootstrap."""

    point: str
    kind: str
    checkpoint: str
    world: str
    measure: str
    value: float
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        if np.isnan(self.draws).all():
            return float("nan"), float("nan")
        low, high = np.nanpercentile(self.draws, [2.5, 97.5])
        return float(low), float(high)

    def row(self) -> dict[str, Any]:
        low, high = self.interval
        named = {name: getattr(self, name) for name in ("point", "kind", "checkpoint", "world", "measure")}
        return named | {"value": round(self.value, 5), "low": round(low, 5), "high": round(high, 5)}


def drawn_again(count: int) -> np.ndarray:
    """Images with replacement, the same ones for every point   [DRAWS, count]"""
    return np.random.default_rng(0).integers(count, size=(DRAWS, count))


def miou(counts: np.ndarray, absent: str) -> float:
    """Mean over noise seeds   counts [2, seeds, n, C]"""
    intersection, union = counts.sum(2)
    return float(np.mean(mean_iou(class_iou(intersection, union, absent))))


def segmentation_values(arrays: Mapping[str, np.ndarray]) -> Iterable[tuple[str, str, float, np.ndarray]]:
    """(world, "mIoU, protocol, part", value in %, draws) of every part; of both methods the background's IoU too."""
    for name, counts in arrays.items():
        world, protocol, part = name.split("/")
        absent = absent_rule(protocol)
        yield world, f"mIoU, {protocol}, {part}", 100 * miou(counts, absent), 100 * miou_draws(counts, absent)
        if part in METHODS:
            background = counts[..., :1]
            values = 100 * miou(background, absent), 100 * miou_draws(background, absent)
            yield world, f"IoU of the background, {protocol}, {part}", *values


def miou_draws(counts: np.ndarray, absent: str) -> np.ndarray:
    """The same on images drawn again   [DRAWS]"""
    images = counts.shape[2]
    weights = np.stack([np.bincount(each, minlength=images) for each in drawn_again(images)])  # [DRAWS, n]
    intersection, union = np.einsum("dn,ksnc->kdsc", weights, counts.astype(np.int64))
    return mean_iou(class_iou(intersection, union, absent)).mean(1)


def switch_effects(arrays: Mapping[str, np.ndarray], world: str) -> list[dict[str, Any]]:
    """What each switch alone changes in the mIoU of each method, in points, on the same images and noise."""

    def value_and_draws(variant: str, method: str) -> tuple[float, np.ndarray]:
        counts, absent = arrays[f"{world}/{variant}/{method}"], absent_rule(variant)
        return miou(counts, absent), miou_draws(counts, absent)

    before = {method: value_and_draws("paper", method) for method in METHODS}
    rows = []
    for switch in ACTING:
        row: dict[str, Any] = {"switch, as released": switch}
        for method in METHODS:
            after = value_and_draws(switch, method)
            value, draws = (new - old for new, old in zip(after, before[method]))
            row[method] = [100 * float(each) for each in (value, *np.nanpercentile(draws, [2.5, 97.5]))]
        rows.append(row)
    return rows


def generation_values(
    arrays: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> Iterable[tuple[str, str, float, np.ndarray]]:
    """(world, measure, value, draws): Fréchet distance, words found, just the words (in %), the validation loss."""
    for world in dict.fromkeys(name.split("/")[0] for name in arrays):
        features, seen = arrays[f"{world}/features"], arrays[f"{world}/seen"]
        unit = reference[world].std(0) + 1e-6  # each feature in units of its deviation among drawn images
        real, rows = statistics(reference[world] / unit), drawn_again(len(features))
        asked = np.array([shown(scene(world, "fresh", index)) for index in range(len(features))])
        found = (seen & asked).sum(1) / asked.sum(1)
        exact = (seen == asked).all(1)
        values = {"words found": 100 * found, "just the words": 100.0 * exact}
        for measure, each in values.items():
            yield world, measure, float(each.mean()), each[rows].mean(1)
        value = distance(features / unit, real)
        draws = np.array([distance(features[some] / unit, real) for some in rows[: DRAWS // 5]])
        draws += value - draws.mean()  # images drawn twice lie farther from the real ones: only the spread is used
        yield world, "Frechet distance", value, np.resize(draws, DRAWS)
        loss = float(arrays[f"{world}/loss"])
        yield world, "validation loss", loss, np.full(DRAWS, loss)


def distance(features: np.ndarray, real: Statistics) -> float:
    return frechet_distance(statistics(features), real)


# --- rank correlations -----------------------------------------------------------------------------------------------


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    a, b = rankdata(x), rankdata(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def correlations(measured: Sequence[Measured], protocol: str = "paper") -> list[dict[str, Any]]:
    """Spearman's rho of generative power with mIoU over the points of each world.

    The interval draws points again, and each point's two values from their own bootstraps.
    """
    table = {(each.point, each.world, each.measure): each for each in measured}
    rows, random = [], np.random.default_rng(1)
    for world in dict.fromkeys(each.world for each in measured):
        points = [point for point, where, measure in table if where == world and measure == "words found"]
        for power, sign in (("words found", 1), ("Frechet distance", -1)):
            for method in METHODS:
                pairs = [
                    (table.get((point, world, power)), table.get((point, world, f"mIoU, {protocol}, {method}")))
                    for point in points
                ]
                pairs = [(a, b) for a, b in pairs if a and b]
                if len(pairs) < 3:
                    continue
                value = spearman([sign * a.value for a, _ in pairs], [b.value for _, b in pairs])
                draws = []
                for draw in range(DRAWS):
                    some = [pairs[i] for i in random.integers(len(pairs), size=len(pairs))]
                    draws.append(spearman([sign * a.draws[draw] for a, _ in some], [b.draws[draw] for _, b in some]))
                draws = [draw for draw in draws if not np.isnan(draw)] or [float("nan")]
                low, high = np.percentile(draws, [2.5, 97.5])
                rows.append(
                    {
                        "world": world,
                        "power": power,
                        "method": method,
                        "points": len(pairs),
                        "rho": value,
                        "low": float(low),
                        "high": float(high),
                    }
                )
    return rows


# --- by kind of caption and size of object ---------------------------------------------------------------------------


def groups(world: str, count: int) -> dict[str, np.ndarray]:
    """Which (image, class) pairs belong to each kind of caption and each size of object   [n, C] bool"""
    classes = len(WORLDS[world].classes)
    found: dict[str, np.ndarray] = {}
    for index in range(count):
        drawn = scene(world, "fresh", index)
        kind = scenes_hard.caption_kind(WORLDS[world].splits["fresh"], index)
        names = [f"caption: {kind}"] if world == "scenes-hard" else []
        for class_id in set(np.unique(drawn.label).tolist()) - {0}:
            for name in [*names, f"object: {scenes_hard.size_of(drawn, class_id)}"]:
                found.setdefault(name, np.zeros((count, classes), bool))[index, class_id] = True
    return dict(sorted(found.items()))


def gains(arrays: Mapping[str, np.ndarray], world: str, protocol: str = "paper") -> list[dict[str, Any]]:
    """Mean IoU of single objects by group, and each part's gain on vanilla with its interval, in points."""
    parts = [name.split("/")[2] for name in arrays if name.startswith(f"{world}/{protocol}/")]
    per_object = {part: ratio(arrays[f"{world}/{protocol}/{part}"]) for part in parts}  # [n, C], mean over seeds
    count, rows = len(per_object["vanilla"]), []
    again = drawn_again(count)
    for group, members in groups(world, count).items():
        row: dict[str, Any] = {"group": group, "objects": int(members.sum())}
        base = per_object["vanilla"]
        row["vanilla"] = 100 * float(base[members].mean())
        for part in parts:
            if part == "vanilla":
                continue
            difference = np.where(members, per_object[part] - base, 0).sum(1)
            draws = 100 * difference[again].sum(1) / np.maximum(1, members.sum(1)[again].sum(1))
            low, high = np.percentile(draws, [2.5, 97.5])
            row[part] = [100 * float(difference.sum() / members.sum()), float(low), float(high)]
        rows.append(row)
    return rows


def ratio(counts: np.ndarray) -> np.ndarray:
    """IoU of each class in each image, mean over noise seeds   [2, seeds, n, C] -> [n, C]"""
    intersection, union = counts.astype(float)
    return (intersection / np.maximum(union, 1)).mean(0)
