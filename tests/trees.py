"""Small folders in the data sets' true layouts, for tests."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from goca.datasets import load_dataset
from PIL import Image, ImageDraw
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


# class ids as VOC's objects list them, and a caption that names some of them
FIVE = {
    "2007_000001": ({8: "cat"}, "Cat, grass, wall, sky."),
    "2007_000002": ({15: "person", 13: "horse"}, "(Person, clothes), horse, field, trees, sky."),
    "2007_000003": ({7: "car", 6: "bus"}, "Car, bus, road, buildings"),
    "2007_000004": ({20: "tvmonitor"}, "(sofa, pillow), wall, window, floor."),
    "2007_000005": ({18: "sofa", 8: "cat"}, "Cat, (sofa, cat, pillow), carpet, tvs."),
}


@cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="voc-mini-")  # removed when the process ends


@cache
def voc_mini():
    """A folder with VOCdevkit/VOC2012 of five drawn images, gpt_output/voc.json and noise.npz; made once a process."""
    folder = Path(_folder().name)
    root, chance = folder / "VOCdevkit" / "VOC2012", np.random.default_rng(0)
    for place in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / place).mkdir(parents=True)
    for number, (image_id, (objects, _)) in enumerate(FIVE.items()):
        size = (120 - 8 * number, 90 + 6 * number)
        noisy = chance.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
        image, labels = Image.fromarray(noisy), Image.new("P", size)
        labels.putpalette([level for index in range(256) for level in (index, 255 - index, index // 2)])
        for at, class_id in enumerate(objects):
            box = (10 + 45 * at, 20 + 10 * at, 50 + 45 * at, 70 + 5 * at)
            ImageDraw.Draw(image).ellipse(box, fill=(200 - 9 * class_id, 90, 12 * class_id))
            ImageDraw.Draw(labels).ellipse(box, fill=class_id, outline=255)
        image.save(root / f"JPEGImages/{image_id}.jpg", quality=95)
        labels.save(root / f"SegmentationClass/{image_id}.png")
        named = "".join(f"<object><name>{name}</name></object>" for name in objects.values())
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{named}</annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(FIVE) + "\n")
    (folder / "gpt_output").mkdir()
    captions = {f"{image_id}.jpg": {"caption": caption} for image_id, (_, caption) in FIVE.items()}
    (folder / "gpt_output/voc.json").write_text(json.dumps(captions))
    np.savez(folder / "noise.npz", noise=chance.standard_normal((1, 4, 32, 32), dtype=np.float32))
    return folder
