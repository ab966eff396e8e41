"""Summaries of a finished run: results.json, evaluation.txt, and the table that is printed at the end."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from goca.benchmark.run_store import RunStore, write_text
from goca.benchmark.word_sources import WORD_SOURCES
from goca.datasets import Dataset, DatasetConfig, class_label
from goca.drawing.class_colours import class_palette
from goca.drawing.palettes import as_hex
from goca.evaluation import ConfusionCounts
from goca.evaluation.metrics import ImageCounts
from goca.evaluation.presence import summary as presence_summary
from goca.files.log import Record
from goca.protocol import Protocol
from goca.report.breakdown import confusions, extremes, metric_values, number
from goca.report.gallery import prune
from goca.report.html import write_report
from goca.report.provenance import revision, versions

SHOWN = 10  # skipped images that the table lists
MANY = 0.1  # above this share of skipped images, the table begins with them
KINDS, REASON = 5, 200  # how many reasons it lists, and their longest text
ORACLE = {
    "classes": WORD_SOURCES["present"].oracle,
    "thresholds": "the background threshold is swept on the evaluated split, and the best is reported",
    "fixed": "the mIoU at the fixed threshold needs no sweep",
}


def summarise(
    dataset: Dataset,
    config: DatasetConfig,
    protocol: Protocol,
    metric: ConfusionCounts,
    records: Sequence[Record],
    *,
    fixed: float,
    settings: Mapping[str, Any],
    origins: Mapping[str, Mapping[str, Any]],
    asked: tuple[str, str] = ("complete", "present"),
) -> dict[str, Any]:
    """Summarise a run for results.json; undefined numbers are None.

    metric    holds the counts of all records, at the swept thresholds and the fixed one
    fixed     the threshold that is reported without a search
    settings  every value of the configuration
    origins   where counts come from, by the id that records hold under "by"
    asked     the run's `ask`, and where its words came from: a key of goca.benchmark.word_sources.WORD_SOURCES
    """
    miou = metric.compute()
    swept = {threshold: miou[threshold] for threshold in config.thresholds}
    best = max(swept, key=lambda threshold: -math.inf if math.isnan(swept[threshold]) else swept[threshold])
    names = [class_label(dataset.class_names, class_id) for class_id in range(metric.num_classes)]
    images = [record["cells"] for record in records if "cells" in record]
    presence, (ask, words) = presence_summary(records, names), asked
    at_best, at_fixed = (metric.image_counts(images, threshold) for threshold in (best, fixed))
    return {
        "mIoU": {
            "best": {"threshold": best, "mIoU": number(swept[best])},
            "fixed": {"threshold": fixed, "mIoU": number(miou[fixed])},
            "swept": [{"threshold": threshold, "mIoU": number(value)} for threshold, value in swept.items()],
        },
        "metrics": metric_values(metric, config.thresholds, at_best, at_fixed, (best, fixed)),
        "per_class": _per_class(names, metric, best, fixed, at_best),
        **({} if presence is None else {"presence": presence}),
        "confusion": confusions(metric, names, best),
        "extremes": extremes(metric, names, records, fixed),
        "images": _images(records),
        "labels": getattr(dataset, "found", None),
        "ask": ask,
        "words": words,
        "oracle": ORACLE | {"classes": WORD_SOURCES[words].oracle},
        "protocol": {"preset": protocol.preset, **protocol.to_dict()},
        "config": dict(settings),
        "computed": _computed(records, origins),
        "versions": versions(),
        "revision": revision(),
        "seconds_per_image": _seconds(records),
        "counts": {
            "thresholds": list(metric.thresholds),
            "intersection": metric.intersection.tolist(),
            "union": metric.union.tolist(),
        },
        "warnings": _warnings(dataset, records),
    }


def write_results(store: RunStore, results: Mapping[str, Any]) -> None:
    """Write evaluation.txt in the published format, results.json, and report.html with its thumbnails."""
    write_text(store.folder / "evaluation.txt", evaluation_text(results))
    write_text(store.folder / "results.json", json.dumps(results, indent=1, allow_nan=False, default=str) + "\n")
    ends = (results["extremes"][which] for which in ("worst", "best"))
    prune(store.folder, [each["image"] for end in ends for each in end])
    write_report(store.folder)


def evaluation_text(results: Mapping[str, Any]) -> str:
    """Format one line per swept threshold, as published, and the pixel accuracy if regions were matched."""
    lines = ((line["mIoU"], line["threshold"]) for line in results["mIoU"]["swept"])
    shown = "".join(f"mIoU: {'nan' if miou is None else miou} at background_threshold {t}\n" for miou, t in lines)
    return f"{shown}pixel accuracy: {results['pixel_accuracy']}\n" if "pixel_accuracy" in results else shown


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Lines that come before the figures: many images were skipped, or some were counted again."""
    listed, counted, skipped = (results["images"][name] for name in ("listed", "counted", "skipped"))
    lines = []
    if len(skipped) > MANY * listed:
        rest = f"; the figures cover the other {counted}" if counted else ": no image was counted"
        lines.append(f"{len(skipped)} of {listed} images were skipped{rest}")
        reasons = Counter(_reason(**each) for each in skipped)
        lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(KINDS)]
        lines += [f"  and {len(reasons) - KINDS} other reasons"] * (len(reasons) > KINDS)
    if changed := results["warnings"].get("changed"):
        lines.append(f"{len(changed)} images were counted again because their image or label had changed:")
        lines += [f"  {each['image']}: {each['text']}" for each in changed[:KINDS]]
        lines += [f"  and {len(changed) - KINDS} more, in results.json"] * (len(changed) > KINDS)
    return lines


def _reason(image: str, reason: str) -> str:
    """Why an image was skipped, without its name, so that equal reasons can be counted."""
    return reason.replace(image, "<image>")[:REASON]


def table(results: Mapping[str, Any]) -> str:
    """Format the table printed at the end: `remarks`, mIoU and IoU per class at both thresholds, skipped images."""
    best, fixed = results["mIoU"]["best"], results["mIoU"]["fixed"]
    heads = [f"best ({best['threshold']:g})", f"fixed ({fixed['threshold']:g})"]
    rows = [("mIoU", best["mIoU"], fixed["mIoU"])]
    rows += [("pixel accuracy", results["pixel_accuracy"], None)] if "pixel_accuracy" in results else []
    rows += [(f"presence, {name}", results["presence"][name]["value"], None) for name in shown_of(results)]
    rows += [(each["name"], each["iou_best"], each["iou_fixed"]) for each in results["per_class"]]
    width = max(len(row[0]) for row in rows)
    lines = [*remarks(results), f"{'':{width}}  {heads[0]:>12}  {heads[1]:>12}"]
    lines += [f"{name:{width}}  {_percent(a):>12}  {_percent(b):>12}" for name, a, b in rows]
    images = results["images"]
    protocol, oracle = results["protocol"]["preset"] or "mixed", next(iter(results["oracle"].values()))
    lines.append(f"{images['counted']} of {images['listed']} images, protocol {protocol}; {oracle}")
    if skipped := images["skipped"]:
        lines += [f"{len(skipped)} skipped:", *(f"  {each['image']}: {each['reason']}" for each in skipped[:SHOWN])]
    if len(skipped) > SHOWN:
        lines.append(f"  and {len(skipped) - SHOWN} more, in results.json")
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")  # file names may hold other bytes


def shown_of(results: Mapping[str, Any]) -> list[str]:
    """The names of the presence metrics that a run has."""
    found = results.get("presence", {})
    return [name for name in ("precision", "recall", "auc") if found and found[name]["value"] is not None]


def _per_class(
    names: Sequence[str], metric: ConfusionCounts, best: float, fixed: float, at_best: ImageCounts
) -> list[dict[str, Any]]:
    iou = dict(zip(metric.thresholds, metric.per_class()))
    intersection, union, pixels = at_best.total()
    palette = class_palette(names)
    return [
        {
            "id": class_id,
            "name": name,
            "colour": as_hex(palette[class_id]),
            "iou_best": number(iou[best][class_id]),
            "iou_fixed": number(iou[fixed][class_id]),
            "label_pixels": int(pixels[class_id]),
            "predicted_pixels_best": int(union[class_id] + intersection[class_id] - pixels[class_id]),
            "images": int((at_best.labelled[:, class_id] > 0).sum()),
        }
        for class_id, name in enumerate(names)
    ]


def _images(records: Sequence[Record]) -> dict[str, Any]:
    skipped = [{"image": each["image"], "reason": each["skipped"]} for each in records if "skipped" in each]
    return {"listed": len(records), "counted": len(records) - len(skipped), "skipped": skipped}


def _computed(records: Sequence[Record], origins: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Devices, versions and commits that computed the counts, each with its number of images."""
    images = Counter(each["by"] for each in records if each.get("by") in origins)
    return [{"images": count, **origins[name]} for name, count in images.most_common()]


def _warnings(dataset: Dataset, records: Sequence[Record]) -> dict[str, Any]:
    counted = [each for each in records if "cells" in each]
    return {
        "lost_classes": [
            {"image": each["image"], "classes": [class_label(dataset.class_names, lost) for lost in each["lost"]]}
            for each in counted
            if each["lost"]
        ],
        "notes": [{"image": each["image"], "text": note} for each in counted for note in each["notes"]],
        "no_class": [each["image"] for each in counted if not each["classes"]],
        "changed": [{"image": each["image"], "text": each["changed"]} for each in records if "changed" in each],
    }


def _seconds(records: Sequence[Record]) -> dict[str, float | None]:
    spent = [each["seconds"] for each in records if "seconds" in each]
    names = ("read", "model", "evaluation")
    return {name: round(sum(each[name] for each in spent) / len(spent), 6) if spent else None for name in names}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
