"""One setting's part of the observation figure, and its measures."""

from __future__ import annotations

from dataclasses import dataclass

from goca.drawing.class_colours import class_palette
from goca.drawing.palettes import Array
from goca.drawing.sheet import PALE, Page
from PIL import Image

from observation.numbers import Numbers

PANEL = 10.3  # inches: width of one setting
LABEL, CELL, GAP, BREAK = 0.85, 0.92, 0.07, 0.24  # inches: words, a map, gap between maps, gap between stages and views
LARGE = 2.0  # the image, and the segmentation
LINE, UNDER = 0.17, 0.14  # a line of small text; between a heading and what is below it
SMALL = 6.5  # its size in points
SHOWN = 512  # pixels: images are resized to about this side, so that small ones are not blocky
NARROW = 0.22  # inches: a head's map that is not wider has its number above it, without the mean weight
EQUAL = 1e-6  # head weights closer than this to an equal share are equal
ACCENT = "#c8452d"
STAGES = ("one_head", "one_layer", "heads_aggregated", "layers_aggregated", "rescaled", "refined")
VIEWS = ("raw scale", "own scale", "where it wins")


@dataclass
class Panel:
    """One setting: its numbers and its position in the figure."""

    page: Page
    numbers: Numbers
    left: float
    image: Image.Image
    shape: float  # height / width of images as drawn
    ranking: bool = False  # show ranks of words at each pixel instead of the view "own scale"

    @property
    def palette(self) -> Array:
        """The colours of the classes, by their names."""
        return class_palette(dict(zip(self.numbers["class_ids"].tolist(), self.numbers["class_names"].tolist())))

    def heading(self, text: str, left: float, top: float, width: float, note: str = "") -> None:
        self.page.text(self.left + left, top, text, width, size=8, weight="bold")
        if note:
            self.page.text(self.left + left, top + LINE, note, width, size=SMALL, colour=PALE)
