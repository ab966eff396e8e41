"""Draw a split of scenes in PASCAL VOC's folder layout, with captions in the format of gpt_output/.

    python3 scripts/make_scenes.py                                      draw the committed test split again
    python3 scripts/make_scenes.py --world scenes-hard                  the same for the harder world
    python3 scripts/make_scenes.py --split fresh --seed 303 --out DIR   any other split: DIR and DIR/labels.json

Image i of a seed is the same on every machine. SPLITS and HARD_SPLITS hold one seed per split; the models were
trained on another seed (mini_data.DATA_SEED).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from embedded import scene_drawing, scenes_hard
from embedded.pen import SIZE
from goca.drawing.palettes import voc_palette
from goca.files.atomic import write_text
from PIL import Image
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = {"test": 101, "validation": 202, "fresh": 303}  # name -> seed
HARD_SPLITS = {"test": 1101, "validation": 1202, "fresh": 1303}


@dataclass(frozen=True)
class World:
    """How a world's scenes are drawn and described; class ids are positions in `classes`, 0 is background."""

    splits: Mapping[str, int]
    classes: Sequence[Sequence[str]]
    draw: Callable[[int, int], Any]
    caption: Callable[[Any, int, int], str]


WORLDS = {
    "scenes": World(
        SPLITS, [[], *([word] for word in scene_drawing.OBJECTS)], scene_drawing.draw_scene, scene_drawing.write_caption
    ),
    "scenes-hard": World(HARD_SPLITS, scenes_hard.CLASSES, scenes_hard.draw_scene, scenes_hard.write_caption),
}


def annotation(name: str, label: np.ndarray, classes: Sequence[Sequence[str]]) -> ElementTree.Element:
    """VOC's XML: the file's name and size, and a box (1-based, inclusive) for each object."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.png"
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", SIZE), ("height", SIZE), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for class_id in sorted(set(np.unique(label)) - {0}):
        rows, columns = np.nonzero(label == class_id)
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = classes[class_id][0]
        box = ElementTree.SubElement(thing, "bndbox")
        corners = {"xmin": columns.min(), "ymin": rows.min(), "xmax": columns.max(), "ymax": rows.max()}
        for tag, value in corners.items():
            ElementTree.SubElement(box, tag).text = str(int(value) + 1)
    ElementTree.indent(root)
    return root


def write_split(out: Path, split: str, seed: int, count: int, world: str = "scenes") -> dict[str, dict[str, str]]:
    """Write the folders of a VOC data set under `out`; return the labels {image file name: {"caption": ...}}."""
    part, drawn = out.with_name(out.name + ".part"), WORLDS[world]
    shutil.rmtree(part, ignore_errors=True)
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (part / folder).mkdir(parents=True)
    palette, labels, names = voc_palette().ravel().tolist(), {}, []
    for i in tqdm(range(count), desc=f"{world}/{split}", unit="image"):
        scene, name = drawn.draw(seed, i), f"{split}_{i:05d}"
        Image.fromarray(scene.image).save(part / f"JPEGImages/{name}.png", optimize=True)
        label = Image.fromarray(scene.label).convert("P")
        label.putpalette(palette)
        label.save(part / f"SegmentationClass/{name}.png", optimize=True)
        tree = ElementTree.ElementTree(annotation(name, scene.label, drawn.classes))
        tree.write(part / f"Annotations/{name}.xml")
        labels[f"{name}.png"] = {"caption": drawn.caption(scene, seed, i)}
        names.append(name)
    (part / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (part / "classes.json").write_text(json.dumps(drawn.classes, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="scenes")
    parser.add_argument("--split", default="test", help=f"its name; {', '.join(SPLITS)} have their own seeds")
    parser.add_argument("--seed", type=int, help="seed of any other split")
    parser.add_argument("--count", type=int, default=200, help="number of images (default: 200)")
    parser.add_argument("--out", type=Path, help="output folder; by default the packaged one")
    parser.add_argument("--labels", type=Path, help="captions; by default gpt_output/WORLD.json or OUT/labels.json")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else WORLDS[arguments.world].splits.get(arguments.split)
    if seed is None:
        parser.error(f"--split {arguments.split} has no seed of its own; give --seed")
    shipped = REPOSITORY / "src-main/goca/embedded" / arguments.world
    out = arguments.out or shipped
    beside = REPOSITORY / f"gpt_output/{arguments.world}.json" if out == shipped else out / "labels.json"
    labels_file = arguments.labels or beside
    labels = write_split(out, arguments.split, seed, arguments.count, arguments.world)
    write_text(labels_file, json.dumps(labels, indent=1))
    print(f"{len(labels)} images in {out}, captions in {labels_file}")


if __name__ == "__main__":
    main()
