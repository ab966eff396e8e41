"""`goca segment` on images of every kind: turned, 16 bits, transparent, animated."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from cli_calls import drawn, painted, record, refused, segment
from goca.cli.renamed import Renamed
from goca.embedded import resolve
from PIL import Image

SCENES = f"{resolve('goca:scenes')}/JPEGImages"
PROMPT = "star, wall, snow"
pytestmark = pytest.mark.usefixtures("inside")


def written(capsys, name):
    """A picture of its own kind, segmented: the record's notes."""
    assert segment(name, "--prompt", PROMPT) == 0, capsys.readouterr().err
    return record(name.rsplit(".", 1)[0])["notes"]


def test_exif_turns_the_picture_upright(loaded, scene, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    scene.resize((60, 40)).save("phone.jpg", exif=exif)
    notes = written(capsys, "phone.jpg")
    assert Image.open("phone-labels.png").size == (40, 60) and "upright" in notes[0]


def test_sixteen_bits_of_grey_are_scaled(loaded, scene, capsys):
    grey = np.asarray(scene.convert("L"))
    Image.fromarray(grey).save("eight.png")
    Image.fromarray(grey.astype(np.uint16) << 8 | 7).save("deep.png")
    (note,) = written(capsys, "deep.png")
    assert "16 bits" in note and written(capsys, "eight.png") == []
    assert np.abs(drawn("deep", (64, 64)) - painted("deep", Image.fromarray(grey).convert("RGB"))).max() <= 1


def test_transparency_is_laid_on_white(loaded, scene, capsys):
    clear = scene.copy()
    clear.putalpha(Image.fromarray(np.tile(np.uint8([0, 255]), (64, 32))))
    clear.save("clear.png")
    scene.convert("RGBA").save("opaque.png")
    (note,) = written(capsys, "clear.png")
    assert "white" in note and written(capsys, "opaque.png") == []
    white = painted("clear", Image.new("RGB", (64, 64), "white"))
    assert np.abs(drawn("clear", (64, 64)) - white)[:, ::2].max() <= 1


def test_an_animation_needs_a_frame(loaded, scene, capsys):
    scene.save("moving.gif", save_all=True, append_images=[scene.rotate(90), scene.rotate(180)])
    said = refused(capsys, "moving.gif", "--prompt", PROMPT)
    assert "ImageUnreadable" in said and "3 frames" in said and "--frame 0" in said
    assert segment("moving.gif", "--prompt", PROMPT, "--frame", "2") == 0
    assert "no frame 3" in refused(capsys, "moving.gif", "--prompt", PROMPT, "--frame", "3")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_every_mode_is_read(loaded, scene, capsys, mode):
    name = "picture.tif" if mode == "CMYK" else "picture.png"
    scene.convert(mode).save(name)
    assert written(capsys, name) == []


def test_the_former_name_of_an_option_works_with_a_warning():
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure-file", type=Path, default=Path("a.png"))
    parser.add_argument("--picture", type=Path, action=Renamed, now="--figure-file")
    assert parser.parse_args([]).figure_file == Path("a.png")
    assert "--picture" not in parser.format_help()
    with pytest.warns(FutureWarning, match="--picture is now called --figure-file"):
        assert parser.parse_args(["--picture", "b.png"]) == argparse.Namespace(figure_file=Path("b.png"))


def test_a_former_flag_sets_the_value_of_the_present_option():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="full")
    parser.add_argument("--quick", action=Renamed, now="--sizes", nargs=0, const="quick")
    assert parser.parse_args([]).sizes == "full"
    with pytest.warns(FutureWarning, match="--quick is now called --sizes quick"):
        assert parser.parse_args(["--quick"]).sizes == "quick"
