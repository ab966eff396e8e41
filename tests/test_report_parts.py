"""Parts of a report by themselves: thumbnails and markup."""

import io

import numpy as np
import pytest
from goca.drawing.class_colours import class_palette
from goca.report.gallery import BYTES, GAP, SIDE, thumbnail
from goca.report.markup import Markup, join, tag
from PIL import Image


@pytest.mark.parametrize("size", [(500, 375), (1, 300), (64, 64), (2048, 1024), (1, 1)])
def test_a_thumbnail_is_small_and_has_three_panels(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    label = np.zeros(size[::-1], np.uint8)
    label[:, size[0] // 2 :] = 1
    content = thumbnail(picture, label, 1 - label, class_palette(["background", "cat"]))
    strip = Image.open(io.BytesIO(content))
    panel = (strip.width - 2 * GAP) // 3
    assert len(content) <= BYTES and max(panel, strip.height) <= SIDE and strip.format == "WEBP"
    colours = np.asarray(strip.convert("RGB")).astype(int)
    if size[0] > 1:
        grey = np.ptp(colours[:, panel + GAP : -panel - GAP], axis=2).mean(axis=0)  # truth: class 1 on the right
        assert grey[5 : panel // 2 - 5].max() < 40 < grey[panel // 2 + 5 : panel - 5].min()


def test_markup_escapes_what_is_not_markup():
    cell = tag("td", "a < b & c", class_="x", data_value='"')
    assert cell == '<td class="x" data-value="&quot;">a &lt; b &amp; c</td>'
    assert tag("p", tag("b", "x"), ["<", Markup("<i></i>")]) == "<p><b>x</b>&lt;<i></i></p>"
    assert tag("img", alt=None) == "<img>" and join("<", tag("i")) == "&lt;<i></i>"
