"""One segmentation as objects of other libraries: COCO annotations, supervision's Detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from goca.formats.coco import measures, rle
from goca.formats.item import FormatMissing

Held = Sequence[tuple[Mapping[str, Any], np.ndarray]]  # a class's row of `Segmentation.summary`, its mask [H, W] bool


def coco_annotations(held: Held, image_id: int) -> list[dict[str, Any]]:
    """One annotation per class, with its mask as run lengths. Raises FormatMissing without pycocotools."""
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": row["id"],
            "category": row["name"],
            "segmentation": rle(mask),
            **measures(mask),
            "iscrowd": 0,
            "score": row["mean_score"],
        }
        for number, (row, mask) in enumerate(held, start=1)
    ]


def detections(held: Held, size: tuple[int, int]) -> Any:
    """`supervision.Detections`. size: (height, width). Raises FormatMissing without supervision."""
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise FormatMissing("to_detections needs supervision: pip install supervision") from None
    masks = np.stack([mask for _, mask in held]) if held else np.zeros((0, *size), dtype=bool)
    return supervision.Detections(
        xyxy=np.array([box(mask) for mask in masks], dtype=float).reshape(-1, 4),
        mask=masks,
        confidence=np.array([row["mean_score"] or 0.0 for row, _ in held], dtype=float),
        class_id=np.array([row["id"] for row, _ in held], dtype=int),
        data={"class_name": np.array([row["name"] for row, _ in held], dtype=str)},
    )


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The first and last column and row of a mask, as in supervision's mask_to_xyxy: x0, y0, x1, y1."""
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())
