"""Cityscapes: 19 classes, as labelIds or trainIds; both circulate, and file names do not always say which it is."""

from __future__ import annotations

from goca.datasets.encodings import Encoding, by_value, label_values
from goca.datasets.folders import FolderDataset, Place

LABEL_IDS = by_value(label_values("cityscapes"))
HIGHEST = 33  # largest labelId; labelIds without a class are not evaluated
VOID_IDS = [value for value in range(HIGHEST + 1) if value not in LABEL_IDS]


class CityscapesDataset(FolderDataset):
    """leftImg8bit and gtFine; the kind of ids is detected from the label files."""

    tree = """\
    leftImg8bit/{list}/<city>/<id>_leftImg8bit.png            images
    gtFine/{list}/<city>/<id>_gtFine_labelIds.png             label ids 0-33, or
    gtFine/{list}/<city>/<id>_gtFine_labelTrainIds.png        train ids 0-18, 255 void"""
    image_places = (Place("leftImg8bit/{list}/*", "_leftImg8bit.png"),)
    label_places = (
        Place("gtFine/{list}/*", "_gtFine_labelIds.png", encodings=("labelIds", "trainIds")),
        Place("gtFine/{list}/*", "_gtFine_labelTrainIds.png", encodings=("trainIds", "labelIds")),
        Place("gtFine/{list}/*", "_gtFine_trainIds.png", encodings=("trainIds", "labelIds")),
    )
    encodings = (
        Encoding.of("labelIds", "label ids 0-33", LABEL_IDS, [*VOID_IDS, 255], unused=[255]),
        Encoding.of("trainIds", "train ids 0-18, 255 void", {value: value + 1 for value in range(19)}, [255]),
    )
    strays = {  # noqa: RUF012
        "gtFine/*/*/*_polygons.json": "There are only polygons; make the label images with cityscapesscripts'"
        " createTrainIdLabelImgs, or unpack gtFine_trainvaltest.zip again",
        "gtCoarse": "gtCoarse is not evaluated; get gtFine_trainvaltest.zip",
    }
