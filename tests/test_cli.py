"""`goca segment`: images in, label map, overlay, masks and JSON out; and what it says of bad input."""

import json
import shutil
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from cli_calls import drawn, painted, record, refused, segment, values
from goca import Segmenter
from goca.cli import main
from goca.cli.models import embedded_words
from goca.embedded import resolve
from PIL import Image
from safetensors.torch import load_file, save_file

SCENES = f"{resolve('goca:scenes')}/JPEGImages"
PROMPT = "star, wall, snow"
pytestmark = pytest.mark.usefixtures("inside")


# --- what comes out ----------------------------------------------------------------------------------------------


def test_the_files_agree_with_each_other_and_with_the_library(scene, capsys):
    picture = f"{SCENES}/test_00000.png"
    assert segment(picture, "--prompt", PROMPT, "--ask", "complete") == 0
    found = record("test_00000")
    labels = Image.open("test_00000-labels.png")
    assert labels.mode == "P" and labels.size == (64, 64)
    result = Segmenter.from_pretrained(None, "mini-sd", device="cpu")(picture, PROMPT, ask="complete")
    label = np.asarray(labels)
    assert (label == result.label_map().numpy()).all()
    assert [row["name"] for row in found["classes"]] == ["star", "wall", "snow"]
    for row, scores in zip(found["classes"], result.scores):
        mask = values(f"test_00000-masks/{row['mask']}")
        assert (mask == (label == row["id"])).all()
        assert row["area"] == pytest.approx((label == row["id"]).mean())
        assert row["max_score"] == pytest.approx(float(scores.max())) and 0 < row["mean_score"] <= row["max_score"]
        assert row["colour"] == "#{:02x}{:02x}{:02x}".format(*result.colours()[row["id"]])
    assert sum(row["area"] for row in found["classes"]) == pytest.approx(1)
    assert found["size"] == {"width": 64, "height": 64} and found["protocol"]["noise"] == "nominal"
    assert found["model"] == "mini-sd" and found["prompt"] == PROMPT and found["seconds"] > 0
    assert (labels.getpalette()[:6]) == [0, 0, 0, 128, 0, 0]  # the label map alone has PASCAL VOC's colours
    assert np.abs(drawn("test_00000", (64, 64)) - painted("test_00000", scene)).max() <= 1
    said = capsys.readouterr()
    assert "star" in said.out and "only its own drawn scenes: ball, star" in said.err
    assert "does not know" not in said.err


def test_a_threshold_makes_background(loaded):
    assert segment(f"{SCENES}/test_00000.png", "--prompt", PROMPT, "--threshold", "0.8") == 0
    label = values("test_00000-labels.png")
    rows = record("test_00000")["classes"]
    assert rows[-1]["name"] == "background" and 0 < rows[-1]["area"] == pytest.approx((label == 0).mean())
    assert (values("test_00000-masks/background.png") == (label == 0)).all()


def test_folder_pattern_and_file_once_each_and_not_their_results(loaded, scene, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        scene.save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    assert segment(folder, f"{folder}/*", folder / "a.png", "--prompt", "star", "--out", folder) == 0
    made = {path.name for path in folder.iterdir()}
    assert made == {"a.png", "b.jpg", "notes.txt"} | {
        f"{stem}{ending}" for stem in "ab" for ending in ("-labels.png", "-overlay.png", "-masks", ".json")
    }
    assert segment(folder, "--prompt", "star", "--out", folder) == 0
    assert {path.name for path in folder.iterdir()} == made


def test_pictures_of_one_name_do_not_share_results(loaded, scene, tmp_path):
    for folder, angle in (("one", 0), ("two", 180), ("three", 90)):
        (tmp_path / folder).mkdir()
        scene.rotate(angle).save(tmp_path / folder / ("A.png" if folder == "three" else "a.png"))
    scene.save(tmp_path / "one" / "a-2.png")
    assert segment("one", "two", "three", "--ask", "complete", "--prompt", PROMPT, "--out", "out") == 0
    stems = sorted(path.name.removesuffix(".json") for path in (tmp_path / "out").glob("*.json"))
    assert stems == ["A-4", "a", "a-2", "a-3"]
    assert (values("out/a-labels.png") == values("out/a-2-labels.png")).mean() > 0.9  # the same picture, other noise
    assert (values("out/a-labels.png") == np.rot90(values("out/a-3-labels.png"), 2)).mean() > 0.8


def test_masks_of_an_earlier_prompt_go_and_other_files_stay(loaded, tmp_path):
    picture, masks = f"{SCENES}/test_00000.png", tmp_path / "test_00000-masks"
    segment(picture, "--prompt", "star, wall")
    (masks / "mine.txt").write_text("kept")
    segment(picture, "--prompt", "star, snow")
    assert sorted(path.name for path in masks.iterdir()) == ["background.png", "mine.txt", "snow.png", "star.png"]


def test_a_forged_record_deletes_nothing_elsewhere(loaded, tmp_path):
    (tmp_path / "mine.png").write_text("kept")
    forged = {"classes": [{"mask": "../mine.png"}, {"mask": str(tmp_path / "mine.png")}, {"mask": "..\\mine.png"}]}
    (tmp_path / "test_00000.json").write_text(json.dumps(forged))
    assert segment(f"{SCENES}/test_00000.png", "--prompt", "star") == 0
    assert (tmp_path / "mine.png").read_text() == "kept"


def test_class_words_cannot_leave_the_folder(loaded, tmp_path):
    words = "../../star, /wall, a:b, .., background"
    segment(f"{SCENES}/test_00000.png", "--prompt", words, "--out", "o/p")
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "o" / "p" not in path.parents]
    assert not outside
    rows = record("o/p/test_00000")["classes"]
    assert len({row["mask"] for row in rows}) == len(rows) >= 3
    for row in rows:
        assert (tmp_path / "o/p/test_00000-masks" / row["mask"]).is_file() and "/" not in row["mask"]


# --- bad input ---------------------------------------------------------------------------------------------------


def test_unreadable_pictures_are_named_and_the_others_segmented(loaded, scene, capsys, tmp_path):
    scene.save("good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no picture")
    said = refused(capsys, "text.jpg", "bad.png", "good.png", "--prompt", PROMPT)
    assert "bad.png cannot be read" in said and "text.jpg is not an image" in said and "2 of 3 images" in said
    assert (tmp_path / "good.json").is_file() and not (tmp_path / "bad.json").exists()


def test_what_is_not_there_is_said_before_the_model_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "empty").mkdir()
    assert "NoImages: gone.png: there is no such file" in refused(capsys, "gone.png", "--prompt", PROMPT)
    assert "the folder empty contains no image" in refused(capsys, "empty", "--prompt", PROMPT)
    assert "'*.jpg' matches no image" in refused(capsys, "*.jpg", "--prompt", PROMPT)
    scene = f"{SCENES}/test_00000.png"
    assert "NoClass" in refused(capsys, scene, "--prompt", " , ")
    assert "nearest: sd15" in refused(capsys, scene, "--prompt", PROMPT, "--model", "sd-15")
    assert "model_index.json" in refused(capsys, scene, "--prompt", PROMPT, "--pipeline", tmp_path)


def test_a_pipeline_of_ones_own(tmp_path, capsys):
    picture = f"{SCENES}/test_00000.png"
    assert segment(picture, "--prompt", PROMPT) == 0
    whole = values("test_00000-labels.png")
    capsys.readouterr()
    copy = tmp_path / "pipe"
    shutil.copytree(resolve("goca:mini-sd"), copy)
    assert segment(picture, "--prompt", PROMPT, "--model", "mini-sd", "--pipeline", copy, "--out", "own") == 0
    assert (values("own/test_00000-labels.png") == whole).all() and record("own/test_00000")["pipeline"] == str(copy)
    assert "knows only" not in capsys.readouterr().err


def test_weights_that_do_not_cover_a_part_are_refused(tmp_path, capsys):
    copy = tmp_path / "pipe"
    shutil.copytree(resolve("goca:mini-sd"), copy)
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({f"else.{name}": tensor for name, tensor in weights.items()}, file, {"format": "pt"})
    said = refused(capsys, f"{SCENES}/test_00000.png", "--prompt", PROMPT, "--model", "mini-sd", "--pipeline", copy)
    assert said.startswith("PartMissing") and "'text_encoder' lack" in said


def test_a_pipeline_that_is_none(capsys, tmp_path):
    said = refused(capsys, f"{SCENES}/test_00000.png", "--prompt", PROMPT, "--model", "sd15", "--pipeline", tmp_path)
    assert said.startswith("PipelineNotFound") and "model_index.json" in said


def test_a_result_replaces_no_picture(loaded, scene, capsys):
    scene.save("cat.png")
    scene.save("cat-overlay.png")
    said = refused(capsys, "cat.png", "cat-overlay.png", "--prompt", PROMPT)
    assert "OutputsClash" in said and "--out" in said
    assert (values("cat-overlay.png") == values("cat.png")).all()


def test_words_that_do_not_fit_are_named(loaded, capsys):
    words = ["ball", "star", "tree", "house", "car", "fish", "flower", "mushroom", "sky", "wall"]
    said = refused(capsys, f"{SCENES}/test_00000.png", "--ask", "complete", "--prompt", ", ".join(words))
    (line,) = [line for line in said.splitlines() if line.startswith("cut, because")]
    assert "sky, wall" in line and "house" not in line and line in record("test_00000")["notes"]
    rows = {row["name"]: row for row in record("test_00000")["classes"]}
    assert rows["wall"]["area"] == 0 and rows["wall"]["mean_score"] is None and rows["ball"]["area"] > 0


def test_words_that_the_embedded_model_does_not_know_are_named(loaded, capsys):
    assert segment(f"{SCENES}/test_00000.png", "--prompt", "the Star, zebra, background") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "does not know" in line]
    assert "know: zebra;" in line


def test_the_words_of_the_card_are_those_of_the_tokenizer(embedded):
    vocabulary = embedded.extractor.parts["tokenizer"].get_vocab()
    whole = {piece.removesuffix("</w>") for piece in vocabulary if piece.endswith("</w>")}
    assert set(embedded_words()) == {word for word in whole if len(word) > 2 and word.isalpha() and word.isascii()}


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no such file"):
        segment("gone.png", "--prompt", PROMPT, "--debug")


def test_help_is_quick_and_importing_goca_does_not_load_torch():
    script = (
        "import sys, time; start = time.process_time(); import goca; from goca.cli import make_parser; make_parser()\n"
        "took = time.process_time() - start; assert 'torch' not in sys.modules; assert took < 1, took\n"
        "from goca.cli import main; sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "segment" in done.stdout and "doctor" in done.stdout
    done = subprocess.run([sys.executable, "-m", "goca"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: goca" in done.stdout and "segment" in done.stdout and not done.stderr


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"goca {metadata.version('goca')}\n"


def test_words_that_name_nothing_are_not_called_cut(loaded, capsys):
    said = refused(capsys, f"{SCENES}/test_00000.png", "--prompt", "a, star")
    assert "not the name of anything visible, and without area: a;" in said and "cut, because" not in said


@pytest.mark.parametrize("prompt", ["a, the", "background", " , "])
def test_a_prompt_without_a_class_name_is_refused_before_a_folder_is_made(capsys, tmp_path, prompt):
    out = tmp_path / "out"
    said = refused(capsys, f"{SCENES}/test_00000.png", "--prompt", prompt, "--out", str(out))
    assert said.startswith(f"NoClass: the prompt '{prompt}' contains no class names") and not out.exists()
