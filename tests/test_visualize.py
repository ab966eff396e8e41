"""Palettes, overlays and figures: colours by closed form, and nothing cut off."""

import io
import subprocess
import sys

import numpy as np
import pytest
from goca.drawing.class_colours import class_colours
from goca.drawing.figures import Row, figure, heat_overlay, pca_image, save_figure
from goca.drawing.palettes import (
    PALETTES,
    DrawingError,
    as_image,
    bright_palette,
    colourise,
    overlay,
    palette_of,
    voc_palette,
)
from PIL import Image

LABELS = np.array([[0, 1], [2, 255]])


def picture(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_voc_colours_are_the_published_ones():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: tuple(voc_palette()[i].tolist()) for i in known} == known


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_differ(palette):
    colours = palette_of(palette)
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours[:30], axis=0)) == 30
    assert len(palette_of(palette)) == 256 and len(bright_palette(5)) == 5


def test_ids_beyond_a_palette_start_over_at_one():
    mine = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    assert colourise(np.array([[0, 1, 2, 3, 4, 255]]), mine)[0].tolist() == [
        [0, 0, 0],
        [255, 0, 0],
        [0, 255, 0],
        [255, 0, 0],
        [0, 255, 0],
        [255, 255, 255],
    ]
    assert colourise(LABELS)[1, 1].tolist() == [224, 224, 192]


def test_overlay_goes_from_the_image_to_the_labels():
    image = picture()
    assert np.array_equal(overlay(image, LABELS, alpha=0), image)
    shown = np.asarray(overlay(image, LABELS, alpha=1))
    assert shown.shape == (30, 40, 3)
    assert shown[0, 0].tolist() == [0, 0, 0] and shown[0, -1].tolist() == [128, 0, 0]
    half = np.asarray(overlay(image, LABELS, alpha=0.5)).astype(int)
    assert np.abs(half * 2 - shown - np.asarray(image)).max() <= 2


def test_images_of_any_kind():
    floats = np.full((4, 5, 3), 0.5)
    assert as_image(floats).getpixel((0, 0)) == (128, 128, 128)
    assert as_image(Image.new("P", (3, 2))).mode == "RGB"

    class Tensor:
        def detach(self):
            return self

        cpu = detach

        def numpy(self):
            return LABELS

    assert np.array_equal(colourise(Tensor()), colourise(LABELS))


def test_heat_is_where_it_is_hot():
    heat = np.zeros((8, 8))
    heat[:, :4] = 7.0
    heat[0, 7] = np.nan
    shown = np.asarray(heat_overlay(Image.new("RGB", (40, 40), (128, 128, 128)), heat)).astype(int)
    assert shown[20, 5, 0] - shown[20, 5, 2] > 80  # red
    assert np.ptp(shown[20, 35]) <= 1  # grey
    flat = heat_overlay(picture(), np.full((4, 4), 3.0))
    assert np.ptp(np.asarray(flat), axis=2).max() <= 1
    heat_overlay(picture(), np.full((4, 4), np.nan))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: overlay(picture(), LABELS, alpha=2), "alpha is 2"),
        (lambda: overlay(picture(), LABELS, palette="pretty"), "expected one of: voc, bright"),
        (lambda: overlay(picture(), LABELS, palette=[1, 2]), "a palette is"),
        (lambda: overlay(picture(), LABELS * 0.5), "whole numbers"),
        (lambda: overlay(picture(), LABELS - 1), "found -1"),
        (lambda: overlay(np.zeros((3, 4)), LABELS), "an image is"),
        (lambda: heat_overlay(picture(), np.zeros(4)), "a heat map is"),
        (lambda: figure([]), "at least one row"),
        (lambda: save_figure(figure([Row(picture())]), "a.doc"), "a.doc"),
    ],
)
def test_what_cannot_be_drawn(call, message):
    with pytest.raises(DrawingError, match=message):
        call()


def rows():
    long = "a very long word that no cell of a figure can hold"
    words = [("cat", np.eye(4)), (long, np.ones((4, 4))), ("$x_1", np.eye(3))]
    return [
        Row(picture(), LABELS, {"vanilla": LABELS, "GoCA": LABELS}, words, caption="cat, grass, " * 40),
        Row(picture(20, 60), None, {"GoCA": LABELS}, words[:1]),
        Row(picture(200, 30), LABELS),
    ]


def pixels(drawn, **options):
    file = io.BytesIO()
    drawn.savefig(file, format="png", **options)
    return np.asarray(Image.open(file).convert("RGB"))


def test_nothing_is_clipped_and_the_rim_is_white():
    names = ["background", "a class with quite a long name", *[f"thing {i} of many" for i in range(300)]]
    drawn = figure(rows(), names, title="A title " * 30)
    shown = pixels(drawn)
    rim = int(0.1 * drawn.dpi)
    for edge in (shown[:rim], shown[-rim:], shown[:, :rim], shown[:, -rim:]):
        assert (edge == 255).all()
    assert shown.shape[1] == pytest.approx(drawn.get_figwidth() * drawn.dpi, abs=2)
    texts = {text.get_text() for text in drawn.texts}
    assert {"image", "truth", "vanilla", "GoCA", "cat", "$x_1", "background", names[1]} <= texts
    assert any(text.startswith("a very") and text.endswith("…") for text in texts)


def test_the_legend_breaks_into_lines_and_names_unknown_ids():
    many = np.arange(40).reshape(5, 8)
    drawn = figure([Row(picture(), many)], ["background", "cat"])
    texts = [text for text in drawn.texts if text.get_text().startswith("class ")]
    assert len(texts) == 38 and len({text.get_position()[1] for text in texts}) > 3
    assert "void" in {text.get_text() for text in figure([Row(picture(), LABELS)]).texts}


def test_a_figure_has_the_colours_of_its_classes_names():
    names = ["background", "sky", "grass"]
    shown = pixels(figure([Row(picture(), LABELS)], names, alpha=1)).reshape(-1, 3)
    seen = set(map(tuple, shown.tolist()))
    assert set(class_colours(dict(enumerate(names))).values()) <= seen
    assert tuple(voc_palette()[1].tolist()) not in seen


def test_what_differs_is_outlined_on_the_predictions_and_notes_stand_under_them():
    flat = Image.new("RGB", (60, 60), (128, 128, 128))
    label, mask = np.zeros((6, 6), int), np.zeros((6, 6), bool)
    mask[1:3, 1:3] = True

    def drawn(outlined):
        row = Row(flat, label, {"vanilla": label, "GoCA": label}, notes={"GoCA": "IoU 71.2 %"}, outlined=outlined)
        return figure([row], ["background"])

    without, same, outlined = (pixels(drawn(each)).astype(int) for each in (None, np.zeros_like(mask), mask))
    assert np.array_equal(without, same)
    changed = np.abs(outlined - without).sum(axis=2) > 0
    rows, columns = np.nonzero(changed)
    cell = outlined.shape[1] / 4  # image, truth, vanilla, GoCA
    assert set((columns // cell).astype(int)) == {2, 3}
    assert np.ptp(rows) == pytest.approx(200 * 1.5 / 3, abs=8)  # two of six pixels of a cell of 1.5 inches, at 200 dpi
    assert outlined[changed].min() < 30
    assert "IoU 71.2 %" in {text.get_text() for text in drawn(mask).texts}


def test_figures_are_the_same_every_time():
    assert np.array_equal(pixels(figure(rows())), pixels(figure(rows())))


def test_pyplot_is_left_alone():
    code = "import sys, goca.drawing.figures; assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["rows.png", "deep/rows.pdf", "rows.svg"])
def test_save(tmp_path, name):
    path = save_figure(figure(rows()[:1]), tmp_path / name)
    assert path.stat().st_size > 1000 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.png"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure(rows()[:1]), path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["rows.png"]


# ---- principal components of a feature


@pytest.mark.parametrize("channels", [5, 60])
def test_principal_components_of_three_orthogonal_directions(channels):
    """Along each axis of a feature made of three orthogonal waves, one colour; the strongest one is red."""
    y, x = np.mgrid[:6, :8]
    waves = np.stack([np.cos(np.pi * (x + 0.5) / 8), np.cos(np.pi * (y + 0.5) / 6), np.cos(np.pi * (x + 0.5) / 4)])
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, 3)))[0]
    feature = np.einsum("ck,khw->chw", directions * [9, 5, 2], waves) + 7
    colours = np.asarray(pca_image(feature)).astype(float)
    for colour, wave in zip(np.moveaxis(colours, 2, 0), waves):
        unit = 255 * (wave - wave.min()) / np.ptp(wave)
        assert min(np.abs(colour - unit).max(), np.abs(255 - colour - unit).max()) <= 1
    assert np.array_equal(colours, np.asarray(pca_image(3 * feature - 1)))


def test_a_feature_of_one_channel_is_red_and_a_flat_one_black():
    assert np.asarray(pca_image(np.arange(4.0).reshape(1, 2, 2))).tolist() == [
        [[0, 0, 0], [85, 0, 0]],
        [[170, 0, 0], [255, 0, 0]],
    ]
    assert not np.asarray(pca_image(np.ones((3, 2, 2)))).any()
    with pytest.raises(DrawingError, match=r"\[C, h, w\], finite"):
        pca_image(np.full((3, 2, 2), np.nan))
