"""Label maps in the formats of other tools: FORMATS, a table from a format's name to its writer.

    from goca.formats import FORMATS, from_segmentation

    item, classes = from_segmentation(segmentation, "cat")
    FORMATS["labelme"](folder, [item], classes)

A writer takes a folder, an iterable of `Labelled` and a class table {id: name} without the background; it writes into
the folder and returns the files. Pixels of 255 (void) belong to no class; only voc and masks can represent them. Loads
without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from goca.formats.coco import write_coco, write_coco_polygons
from goca.formats.item import FormatError, FormatMissing, Labelled, Writer, from_segmentation
from goca.formats.labelme import write_labelme
from goca.formats.masks import write_cutouts, write_masks
from goca.formats.voc import write_voc
from goca.formats.yolo import write_yolo

FORMATS: dict[str, Writer] = {
    "coco": write_coco,
    "coco-polygons": write_coco_polygons,
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "masks": write_masks,
    "cutouts": write_cutouts,
}

__all__ = ["FORMATS", "FormatError", "FormatMissing", "Labelled", "Writer", "chosen_formats", "from_segmentation"]


def chosen_formats(given: str | Iterable[str]) -> Sequence[str]:
    """The formats in a text such as "voc,coco", without repetitions. Raises FormatError for unknown ones."""
    texts = given.split(",") if isinstance(given, str) else given
    names = list(dict.fromkeys(name for text in texts if (name := text.strip().lower())))
    if unknown := [name for name in names if name not in FORMATS]:
        raise FormatError(f"unknown format {unknown[0]!r}; expected some of: {', '.join(FORMATS)}")
    return names
