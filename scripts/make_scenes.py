"""Write a split of the scenes in PASCAL VOC's folder layout, with captions in the labels format.

    python3 scripts/make_scenes.py                                      the committed test split, made again
    python3 scripts/make_scenes.py --split fresh --seed 303 --out DIR   any other split: DIR and DIR/labels.json

The picture numbered i of a seed is the same on every machine. The seeds in SPLITS keep the splits apart; the model was
trained on another one (train_mini.DATA_SEED).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from goca.colours import voc_palette
from PIL import Image
from scene_drawing import OBJECTS, SIZE, Scene, draw_scene, write_caption
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = {"test": 101, "validation": 202, "fresh": 303}  # name -> seed


def annotation(name: str, scene: Scene) -> ElementTree.Element:
    """VOC's XML: the file's name and size, and a box (1-based, inclusive) for each object."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.png"
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", SIZE), ("height", SIZE), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for word in scene.objects:
        rows, columns = np.nonzero(scene.label == OBJECTS.index(word) + 1)
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = word
        box = ElementTree.SubElement(thing, "bndbox")
        corners = {"xmin": columns.min(), "ymin": rows.min(), "xmax": columns.max(), "ymax": rows.max()}
        for tag, value in corners.items():
            ElementTree.SubElement(box, tag).text = str(int(value) + 1)
    ElementTree.indent(root)
    return root


def write_split(out: Path, split: str, seed: int, count: int) -> dict[str, dict[str, str]]:
    """The folders of a VOC data set under `out`; returns the labels {image file name: {"caption": ...}}."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (part / folder).mkdir(parents=True)
    palette, labels, names = voc_palette().ravel().tolist(), {}, []
    for i in tqdm(range(count), desc=f"scenes/{split}", unit="picture"):
        scene, name = draw_scene(seed, i), f"{split}_{i:05d}"
        Image.fromarray(scene.picture).save(part / f"JPEGImages/{name}.png", optimize=True)
        label = Image.fromarray(scene.label).convert("P")
        label.putpalette(palette)
        label.save(part / f"SegmentationClass/{name}.png", optimize=True)
        ElementTree.ElementTree(annotation(name, scene)).write(part / f"Annotations/{name}.xml")
        labels[f"{name}.png"] = {"caption": write_caption(scene, seed, i)}
        names.append(name)
    (part / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (part / "classes.json").write_text(json.dumps([[], *([word] for word in OBJECTS)], indent=1))
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", help=f"its name; {', '.join(SPLITS)} have a seed")
    parser.add_argument("--seed", type=int, help="of a split that has none")
    parser.add_argument("--count", type=int, default=200, help="pictures")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "src-main/goca/embedded/scenes", help="folder")
    parser.add_argument("--labels", type=Path, help="captions; by default gpt_output/scenes.json or OUT/labels.json")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else SPLITS.get(arguments.split)
    if seed is None:
        parser.error(f"--split {arguments.split} has no seed of its own; say --seed")
    default = parser.get_default("out") == arguments.out
    beside = REPOSITORY / "gpt_output/scenes.json" if default else arguments.out / "labels.json"
    labels_file = arguments.labels or beside
    labels = write_split(arguments.out, arguments.split, seed, arguments.count)
    labels_file.parent.mkdir(parents=True, exist_ok=True)
    part = labels_file.with_name(labels_file.name + ".part")
    part.write_text(json.dumps(labels, indent=1))
    part.rename(labels_file)
    print(f"{len(labels)} pictures in {arguments.out}, captions in {labels_file}")


if __name__ == "__main__":
    main()
