"""`goca segment`: prompts from a file, standard input and output, score arrays, formats, settings, regions."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from goca import Segmenter
from goca.cli import main
from goca.embedded import resolve
from goca.variants.regions import RegionFinder
from PIL import Image

SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00000.png"
PROMPT = "star, wall, snow"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Commands are given in a folder with two images."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENE, tmp_path / "a.png")
    Image.open(SCENE).convert("RGB").rotate(180).save(tmp_path / "b.png")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))


class Standard:
    """A standard stream that holds bytes and text."""

    def __init__(self, content=b""):
        self.buffer = io.BytesIO(content)

    def read(self):
        return self.buffer.read().decode()

    def write(self, text):
        self.buffer.write(text.encode())

    def flush(self):
        pass

    def isatty(self):
        return False


def segment(*arguments):
    return main(["segment", *map(str, arguments)])


def refused(capsys, *arguments):
    assert segment(*arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and "not one of GoCA's own" not in said
    return said


def record(stem):
    return json.loads(Path(f"{stem}.json").read_text())


def names(stem):
    return [row["name"] for row in record(stem)["classes"] if row["name"] != "background"]


# --- prompts from a file -----------------------------------------------------------------------------------------


def test_each_image_is_asked_for_its_own_line(loaded, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "prompts.csv").write_text('image,prompt\n../a.png,"star, wall"\n../b.png,snow,house\n')
    assert segment("--prompts", "sub/prompts.csv") == 0
    assert names("a") == ["star", "wall"] and names("b") == ["snow", "house"]
    assert record("b")["prompt"] == "snow, house" and record("b")["words_from"] == "prompts sub/prompts.csv"
    assert segment("b.png", "--prompts", "sub/prompts.csv", "--out", "one") == 0  # some of them
    assert [path.name for path in Path("one").glob("*.json")] == ["b.json"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png,star\n", "has no prompt for b.png"),
        ("a.png,\n", "the line 'a.png,' lacks an image or a prompt"),
        ("a.png,star\na.png,wall\n", "a.png has two lines"),
        ("image,prompt\n", "contains no image"),
        ('a.png,"star', "cannot be read"),
    ],
)
def test_a_file_of_prompts_that_makes_no_sense(no_model, tmp_path, capsys, lines, message):
    (tmp_path / "prompts.csv").write_text(lines)
    assert message in refused(capsys, "a.png", "b.png", "--prompts", "prompts.csv")


# --- standard input and output -----------------------------------------------------------------------------------


def test_an_image_goes_in_and_a_label_map_comes_out(loaded, monkeypatch, tmp_path):
    assert segment("a.png", "--prompt", PROMPT, "--ask", "complete", "--scores") == 0
    shutil.copy("a.png", "stdin")  # the same name gives the same noise
    assert segment("stdin", "--prompt", PROMPT, "--ask", "complete", "--out", "file") == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(sys, "stdin", Standard((tmp_path / "a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", out := Standard())
    assert segment("-", "--prompt", PROMPT, "--ask", "complete", "--out", "-") == 0
    image = Image.open(io.BytesIO(out.buffer.getvalue()))
    assert image.mode == "P" and sorted(path.name for path in tmp_path.iterdir()) == before
    assert np.array_equal(np.asarray(image), np.asarray(Image.open("file/stdin-labels.png")))
    monkeypatch.setattr(sys, "stdout", out := Standard())
    assert segment("a.png", "--prompt", PROMPT, "--ask", "complete", "--out", "-", "--scores") == 0
    assert np.array_equal(np.load(io.BytesIO(out.buffer.getvalue())), np.load("a-scores.npy"))


def test_what_standard_streams_cannot_do(no_model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Standard())
    assert "--out - can write one label map" in refused(capsys, "a.png", "b.png", "--prompt", PROMPT, "--out", "-")
    assert "not --format coco" in refused(capsys, "a.png", "--prompt", PROMPT, "--out", "-", "--format", "coco")
    assert "can be read only once" in refused(capsys, "-", "--prompts", "-")
    assert "standard input, which is empty" in refused(capsys, "-", "--prompt", PROMPT)
    assert "no image was given" in refused(capsys, "--prompt", PROMPT)
    assert "leave out --ask" in refused(capsys, "a.png", "--regions", "--ask", "open")


# --- arrays and formats ------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_library(embedded, loaded):
    assert segment("a.png", "--prompt", PROMPT, "--scores") == 0
    found, expected = np.load("a-scores.npy"), embedded("a.png", PROMPT)
    assert found.dtype == np.float32 and np.array_equal(found, expected.scores.numpy())
    assert record("a")["maps"] == expected.names and record("a")["scores"] == "a-scores.npy"


def test_a_set_has_one_class_table_whatever_the_words(loaded, tmp_path):
    (tmp_path / "prompts.csv").write_text("a.png,star,wall\nb.png,snow,star\n")
    assert segment("--prompts", "prompts.csv", "--ask", "complete") == 0
    assert segment("--prompts", "prompts.csv", "--ask", "complete", "--format", "coco,masks,cutout", "--out", "o") == 0
    assert sorted(path.name for path in Path("o").iterdir()) == ["coco", "cutouts", "masks"]
    table = json.loads(Path("o/masks/classes.json").read_text())
    assert sorted(table.values()) == ["snow", "star", "wall"]
    for stem in "ab":
        own = {row["id"]: row["name"] for row in record(stem)["classes"]}
        plain, shared = (np.asarray(Image.open(f"{place}.png")) for place in (f"{stem}-labels", f"o/masks/{stem}"))
        for class_id in np.unique(plain):
            (number,) = np.unique(shared[plain == class_id])
            assert own[class_id] == table[str(number)]
    coco = json.loads(Path("o/coco/annotations/instances_train.json").read_text())
    assert {each["name"] for each in coco["categories"]} == set(table.values()) and len(coco["images"]) == 2
    cutout = Image.open(next(Path("o/cutouts").glob("a-*.png")))
    assert cutout.mode == "RGBA" and cutout.size == (64, 64)


def test_plain_files_and_a_format_together(loaded):
    assert segment("a.png", "--prompt", PROMPT, "--format", "plain,yolo,labelme,voc", "--out", "o") == 0
    found = {path.name for path in Path("o").iterdir()}
    assert found == {"a-labels.png", "a-overlay.png", "a-masks", "a.json", "yolo", "labelme", "voc"}
    assert Path("o/labelme/a.json").is_file() and Path("o/yolo/labels/train/a.txt").read_text()


def test_an_unknown_format_lists_the_known_ones(no_model, capsys):
    said = refused(capsys, "a.png", "--prompt", PROMPT, "--format", "plain,cocoa")
    assert said.startswith("FormatError") and "labelme" in said


@pytest.mark.parametrize(
    "command",
    [
        "segment a.png --prompt star --out o",
        "label . --tags t.csv --out o",
        "synth --classes star --count 1 --out o",
        "app",
        "doctor",
    ],
)
def test_a_device_that_is_not_here_is_said_first(no_model, capsys, tmp_path, command):
    before = sorted(tmp_path.iterdir())
    assert main([*command.split(), "--device", "cuda:99"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("DeviceNotFound") and "auto, cpu" in said.err and not said.out
    assert sorted(tmp_path.iterdir()) == before


# --- settings ----------------------------------------------------------------------------------------------------


def test_any_field_of_the_config_can_be_set(capsys):
    given = ["--set", "t=50", "--set", "model.calibration.slope=3", "--set", "protocol.noise=pipeline"]
    assert segment("a.png", "--prompt", PROMPT, *given, "--refine", "none", "--scores") == 0
    config = {"of": "mini-sd", "t": 50, "calibration": {"slope": 3, "midpoint": 0.092}, "refine": []}
    expected = Segmenter.from_pretrained(
        None, config | {"protocol": {"preset": "paper", "noise": "pipeline"}}, device="cpu"
    )("a.png", PROMPT)
    assert np.array_equal(np.load("a-scores.npy"), expected.scores.numpy())
    assert record("a")["set"] == given[1::2] and record("a")["refine"] == "none"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "head_methd=average"], "nearest: head_method"),
        (["--set", "t"], "expected KEY=VALUE"),
        (["--set", "t=soon"], "t is 'soon'"),
        (["--set", "protocol.nois=x"], "noise"),
        (["--refine", "blur"], "affinity"),
        (["--pipeline", "."], "model_index.json"),
    ],
)
def test_a_setting_that_makes_no_sense(no_model, capsys, given, message):
    assert message in refused(capsys, "a.png", "--prompt", PROMPT, "--out", "o", *given)
    assert not Path("o").exists()


def test_offload_and_8_bit_reach_the_library(embedded, monkeypatch):
    seen = {}
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **given: seen.update(given) or embedded)
    assert segment("a.png", "--prompt", PROMPT, "--offload", "model", "--int8-text") == 0
    assert seen["offload"] == "model" and seen["int8_text"] is True


def test_a_pipeline_s_config_is_found(tmp_path):
    shutil.copytree(resolve("goca:mini-sd"), "pipe")
    assert segment("a.png", "--prompt", PROMPT, "--pipeline", "pipe") == 0
    assert record("a")["model"] == "mini-sd" and record("a")["pipeline"] == "pipe"


def test_another_embedded_model_is_known_by_its_folder(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "embedded"
    shutil.copytree(resolve("goca:mini-sd"), folder / "mini-two")
    (folder / "mini-two" / "README.md").write_text("# mini-two\n\nWords: star, fire dragon,\nwall. Nothing else.\n")
    monkeypatch.setattr("goca.embedded._FOLDER", folder)
    assert segment("a.png", "--prompt", "star, dragon, snow", "--pipeline", "goca:mini-two") == 0
    said = capsys.readouterr().err
    assert "mini-two, the embedded model, knows only its own drawn scenes: star, fire dragon, wall." in said
    assert "mini-two does not know: snow;" in said and record("a")["model"] == "mini-sd"


# --- regions -----------------------------------------------------------------------------------------------------


def test_regions_need_no_words_and_cover_the_image(capsys):
    assert segment("a.png", "--regions") == 0
    rows, label = record("a")["classes"], np.asarray(Image.open("a-labels.png"))
    assert [row["name"] for row in rows] == [f"region {n}" for n in range(1, len(rows) + 1)] and len(rows) > 1
    assert label.min() == 1 and sum(row["area"] for row in rows) == pytest.approx(1)
    assert "prompt" not in record("a") and record("a")["words_from"] == "regions"
    finder = RegionFinder.from_pretrained(None, "mini-sd", device="cpu")
    (maps,) = finder.regions(["a.png"])
    expected = finder.segment("a.png")
    assert np.array_equal(expected.label_map().numpy(), label)
    order = [int((maps == each).flatten(1).all(1).nonzero()[0]) for each in expected.scores]
    areas = maps.argmax(0).flatten().bincount(minlength=len(maps))[order]
    assert (areas.diff() <= 0).all() and areas.min() > 0 and areas.sum() == maps[0].numel()
