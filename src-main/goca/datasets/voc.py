"""PASCAL VOC's folder layout: palette labels, objects in XML, a list per split."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from goca.datasets.base import DatasetConfig, DatasetNotFound, Sample, SampleError, class_table, read_ids_or_colours
from goca.datasets.folders import read_list

TREE = """\
    JPEGImages/<id>.jpg (or .png)         images
    SegmentationClass/<id>.png            palette images: class ids, 255 at the borders
    Annotations/<id>.xml                  objects in the image
    ImageSets/Segmentation/<split>.txt    one id per line"""
SUFFIXES = (".jpg", ".png")


class VocDataset:
    """PASCAL VOC 2012, or anything in its layout. Raises DatasetNotFound with the expected tree."""

    def __init__(self, config: DatasetConfig) -> None:
        self.name = config.name
        self.folder = config.folder(TREE)
        for part in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
            if not (self.folder / part).is_dir():
                inner = next((str(found.parent) for found in sorted(self.folder.glob("*/*/JPEGImages"))), None)
                hint = f"\nThis looks like the parent folder; try dataset.root={inner}" if inner else ""
                raise DatasetNotFound(f"dataset.root={config.root} has no {part}/; {self.name!r} expects\n{TREE}{hint}")
        self.class_names = class_table(config.classes, self.folder)
        self.ids = self._listed(config)
        if config.reverse:
            self.ids.reverse()

    def sample(self, image_id: str) -> Sample:
        """Return the sample of that id; its present classes are the objects of its XML file."""
        images = [self.folder / "JPEGImages" / f"{image_id}{suffix}" for suffix in SUFFIXES]
        objects = self.folder / "Annotations" / f"{image_id}.xml"
        notes: list[str] = []
        return Sample(
            id=image_id,
            image_path=next((path for path in images if path.is_file()), images[0]),
            label_path=self.folder / "SegmentationClass" / f"{image_id}.png",
            objects=self._present(objects),
            read_label=partial(read_ids_or_colours, classes=len(self.class_names), notes=notes),
            sources=[objects],
            remarks=notes,
        )

    def _present(self, path: Path) -> list[int]:
        try:
            objects = [element.findtext("name", "").strip() for element in ElementTree.parse(path).iter("object")]
        except FileNotFoundError:
            raise SampleError(f"annotation {path.name} is missing") from None
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise SampleError(f"annotation {path.name} cannot be read: {error}") from None
        return sorted({self._class_id(name, path) for name in objects})

    def _class_id(self, name: str, path: Path) -> int:
        for class_id, names in enumerate(self.class_names):
            if name in names:
                return class_id
        raise SampleError(f"annotation {path.name} names the object {name!r}, which is not a class of {self.name!r}")

    def _listed(self, config: DatasetConfig) -> list[str]:
        folder = self.folder / "ImageSets" / "Segmentation"
        path = folder / f"{config.listed}.txt"
        if not path.is_file():
            splits = ", ".join(sorted(found.stem for found in folder.glob("*.txt"))) or "none"
            raise DatasetNotFound(f"dataset.split={config.split}: {path} does not exist; splits there: {splits}")
        return read_list(path)
