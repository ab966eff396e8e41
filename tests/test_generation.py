"""The generation experiment: captions, and runs that are resumed or divided among processes."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
HERE = ROOT / "src-additional/generation_experiment"
sys.path.insert(0, str(HERE))

import generate as generation  # noqa: E402
from captions import CaptionsError, read_captions  # noqa: E402
from features import FeaturesError, images_of  # noqa: E402
from generate import Settings, SettingsError, generate  # noqa: E402
from goca.benchmark.run_store import RunError  # noqa: E402
from sheet import sheet  # noqa: E402

# ---- captions

COCO = {
    "images": [],
    "annotations": [
        {"image_id": 9, "caption": "two  cats\n"},
        {"image_id": 4, "caption": "a dog"},
        {"image_id": 9, "caption": "other"},
    ],
}


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("coco.json", COCO, {"000000000004": "a dog", "000000000009": "two cats"}),
        ("labels.json", {"b.jpg": {"caption": "x"}, "a.jpg": {"caption": "y"}}, {"b": "x", "a": "y"}),
        ("list.json", ["x", "y"], {"000000": "x", "000001": "y"}),
        ("lines.txt", "x\n\n y \n", {"000000": "x", "000001": "y"}),
        ("lines.txt", "a cat, a caption\n2, 3 dogs\n", {"000000": "a cat, a caption", "000001": "2, 3 dogs"}),
        ("table.csv", 'image_id,text\n521669,A.\n7,"one, ""two""\nthree"\n', {"521669": "A.", "7": 'one, "two" three'}),
        ("table.csv", "\ufeffcaption,file_name\r\nx,b/c.jpg\r\n", {"c": "x"}),
        ("table.csv", "text\nx\ny\n", {"000000": "x", "000001": "y"}),
        ("table.txt", "id,caption\n3,x\n", {"3": "x"}),
    ],
)
def test_shapes_of_captions(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_captions(tmp_path / name) == expected
    assert read_captions(tmp_path / name, 1) == dict(list(expected.items())[:1])


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a": 1}', "is not a captions file"),
        ("a.json", "3", "is not a captions"),
        ("a.json", '{"annotations": [{"caption": "x"}]}', "without image_id"),
        ("a.txt", "\n", "has no captions"),
        ("a.json", '{"..": "x"}', "not a file name"),
        ("a.json", '{"a.png": "x", "a.jpg": "y"}', "is a duplicate"),
        ("a.json", '["x", ""]', "is not a captions file"),
        ("a.csv", "x\ny\n", "without a caption column"),
        ("a.txt", "1,a cat\n2,a dog\n", "without a caption column"),
        ("a.csv", "id,text\n1,a, b\n", "a row has 3 columns"),
        ("a.csv", "id,text\n1,x\n1,y\n", "is a duplicate"),
        ("a.csv", 'id,text\n1,"x\n', "is not a CSV table"),
        ("a.csv", "id,text\n../1/,x\n../1,y\n", "is a duplicate"),
        ("a.csv", "id,text\n", "has no captions"),
    ],
)
def test_captions_of_another_shape(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CaptionsError, match=message):
        read_captions(tmp_path / name)


RELEASED_CAPTIONS = Path(__file__).parents[2] / "shared" / "data" / "coco_val2014_30k_captions.csv"


@pytest.mark.skipif(not RELEASED_CAPTIONS.is_file(), reason="the published table of 30,000 captions is not here")
def test_the_released_captions_of_coco_are_thirty_thousand():
    captions = read_captions(RELEASED_CAPTIONS)
    assert len(captions) == 30_000
    assert list(captions)[:2] == ["521669", "116361"]
    assert not any("\n" in caption for caption in captions.values())


def test_captions_that_are_not_there(tmp_path):
    with pytest.raises(CaptionsError, match="cannot be read"):
        read_captions(tmp_path / "none.json")
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(CaptionsError, match="n=2"):
        read_captions(tmp_path / "a.txt", 2)


# ---- generating


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Settings of a short run of the embedded model, by method."""
    place = tmp_path_factory.mktemp("generation")
    (place / "captions.txt").write_text("ball, sky, grass\nhouse, snow, forest\ncar, road, wall\n")

    def make(method="goca", out=None, **more):
        given = {"captions": str(place / "captions.txt"), "steps": 2, "device": "cpu"}
        given["out"] = str(out or place / method)
        return Settings(model="mini-sd", method=method, **{**given, **more})

    return make


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def pixels(folder):
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in sorted(Path(folder).glob("*.png"))}


def test_a_killed_run_goes_on(scene, tmp_path, monkeypatch):
    whole = scene(batch=2)
    assert generate(whole) == 3
    expected = pixels(whole.out)
    assert list(expected) == ["000000.png", "000001.png", "000002.png"]
    save, calls = Image.Image.save, []

    def broken(self, file, **more):
        calls.append(file)
        save(self, file, **more)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        generate(scene(out=tmp_path))
    monkeypatch.undo()
    assert list(pixels(tmp_path)) == ["000000.png"]
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "000001.png.77.tmp").write_bytes(b"half")
    with pytest.raises(FeaturesError, match="1 images"):
        images_of(tmp_path)
    assert generate(scene(out=tmp_path)) == 2
    for name, picture in pixels(tmp_path).items():
        assert np.abs(picture - expected[name]).max() <= 1, name  # whatever the batch


def test_processes_divide_the_images_and_other_settings_are_refused(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in (("0", 2), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert generate(scene("cfg", out=tmp_path)) == made
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["method"] == "cfg" and settings["steps"] == 2 and settings["scheduler"] == "PNDMScheduler"
    with pytest.raises(RunError, match="guidance_scale"):
        generate(scene("cfg", out=tmp_path, guidance_scale=3.0))


def test_seeds(scene):
    own, shared = scene(), scene(shared_noise=True)
    seeds = {generation.seed_of(own, name) for name in ("a", "b")}
    assert len(seeds) == 2 and seeds == {generation.seed_of(scene(batch=3), name) for name in ("a", "b")}
    assert generation.seed_of(shared, "a") == generation.seed_of(shared, "b") == 42


def test_the_contact_sheet_shows_masks_and_rates(scene):
    folders = {}
    for method in ("cfg", "goca", "s-cfg"):
        generate(scene(method))
        folders[method] = Path(scene(method).out)
    with np.load(folders["goca"] / "guidance/000000.npz", allow_pickle=False) as kept:
        assert kept["tokens"].shape == kept["foreground"].shape == kept["rate"].shape == (16, 16)
        assert kept["tokens"].max() <= 6  # "ball, sky, grass" behind the start token
    drawn = sheet(folders, read_captions(scene().captions), 2)
    titles = [axes.get_title() for axes in drawn.axes if axes.get_title()]
    assert titles == ["cfg", *(title for name in ("goca", "s-cfg") for title in (name, "tokens", "foreground", "rate"))]
    assert len(drawn.axes) == 2 * 9
    with pytest.raises(SettingsError, match="no image"):
        sheet(folders, {"nowhere": "x"}, 2)


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"method": "pag"}, "expected one of: cfg, s-cfg, goca"),
        ({"guidance_scale": 1.0}, "above 1"),
        ({"batch": 0}, "batch"),
        ({"pipeline": "/nowhere/at/all"}, "cannot be read"),
    ],
)
def test_settings_that_do_not_go_together(scene, tmp_path, changed, message):
    with pytest.raises(SettingsError, match=message):
        generate(scene(out=tmp_path, **changed))


def test_a_scheduler_by_name(scene, tmp_path):
    own = scene(method="cfg", out=tmp_path / "own", n=1)
    other = scene(method="cfg", out=tmp_path / "ddim", n=1, scheduler="DDIMScheduler")
    assert generate(own) == generate(other) == 1
    assert json.loads((tmp_path / "ddim" / "settings.json").read_text())["scheduler"] == "DDIMScheduler"
    pictures = [pixels(folder)["000000.png"] for folder in (tmp_path / "own", tmp_path / "ddim")]
    assert (pictures[0] != pictures[1]).any()
    with pytest.raises(SettingsError, match=r"not a scheduler of diffusers \(nearest: DDIMScheduler"):
        generate(scene(out=tmp_path / "none", scheduler="DDIMSheduler"))
    with pytest.raises(SettingsError, match=r"scheduler=subprocess is not a scheduler"):
        generate(scene(out=tmp_path / "none", scheduler="subprocess"))


class Cleaning:
    """A pipeline that cleans captions."""

    def _clean_caption(self, caption):
        return caption.replace("<b>", "").lower()

    def _text_preprocessing(self, captions, clean_caption=False):
        return [self._clean_caption(each) if clean_caption else each for each in captions]


def test_captions_are_cleaned_where_the_pipeline_can(scene, tmp_path, monkeypatch):
    clean = scene(out=tmp_path, clean_captions=True)
    assert generation.prompts_of(scene(), Cleaning(), ["A <b>Cat"]) == ["A <b>Cat"]
    monkeypatch.setattr(generation, "CLEANING", ("json",))
    assert generation.prompts_of(clean, Cleaning(), ["A <b>Cat"]) == ["a cat"]
    monkeypatch.setattr(generation, "CLEANING", ("json", "not_there_at_all"))
    with pytest.raises(SettingsError, match="needs not_there_at_all: pip install"):
        generation.prompts_of(clean, Cleaning(), ["A <b>Cat"])
    with pytest.raises(SettingsError, match="StableDiffusionPipeline does not clean captions"):
        generate(clean)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["model=mini-sd"], "SettingsError"),
        (["modle=x"], "modle"),
        (["goca"], "not key=value"),
        (["model=mini-sd", "method=goca", "captions=nowhere.txt"], "CaptionsError: captions=nowhere.txt"),
    ],
)
def test_the_command_ends_with_a_message(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HERE / "generate.py"), run_name="__main__")
    assert message in str(ended.value) and ": " in str(ended.value)
