"""Small folders in the data sets' true layouts, for tests."""

import json

import numpy as np
from goca.datasets import load_dataset
from PIL import Image
from scipy.io import savemat

SHAPE = (6, 8)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SHAPE[::-1], "green").save(path)


def label(path, values, dtype=np.uint8):
    """A label file whose pixels begin with these values and go on with the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.full(SHAPE[0] * SHAPE[1], values[-1], dtype)
    flat[: len(values)] = values
    if path.suffix == ".mat":
        savemat(path, {"LabelMap": flat.reshape(SHAPE)}, do_compression=True)
    else:
        Image.fromarray(flat.reshape(SHAPE)).save(path)


def load(name, root, **fields):
    lists = {"context": "Segmentation/train", "cityscapes": "val", "ade20k": "validation"}
    given = {"name": name, "reader": name, "classes": name, "root": str(root), "split": lists.get(name, "val2017")}
    return load_dataset(given | fields)


def start(sample, count):
    return sample.label.ravel()[:count].tolist()


def context(root, ids=("2008_000001", "2008_000002")):
    for image_id in ids:
        picture(root / f"JPEGImages/{image_id}.jpg")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids) + "\n")
    return root


def coco(root, ids=(139, 285)):
    for image_id in ids:
        picture(root / f"val2017/{image_id:012}.jpg")
    return root


def panoptic(root, files):
    """Panoptic PNGs and their JSON: number -> [(segment id, category id)], one pixel each, the rest void."""
    entries = []
    for number, segments in files.items():
        pixels = np.zeros((*SHAPE, 3), np.uint8)
        for at, (segment, _) in enumerate(segments):
            pixels.reshape(-1, 3)[at] = segment % 256, segment // 256 % 256, segment // 65536
        path = root / f"annotations/panoptic_val2017/{number:012}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        info = [{"id": segment, "category_id": category} for segment, category in segments]
        entries.append({"file_name": path.name, "image_id": number, "segments_info": info})
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps({"annotations": entries}))
    return root


def cityscapes(root, kind, values, cities=("frankfurt", "lindau")):
    for city in cities:
        picture(root / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
        label(root / f"gtFine/val/{city}/{city}_000000_000019_gtFine_{kind}.png", values)
    return root
