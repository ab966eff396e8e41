"""`goca label` on the embedded model: masks, resume after a kill, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chat_server import ChatServer, caption
from goca.cli import main
from goca.embedded import resolve
from PIL import Image

SCENES = f"{resolve('goca:scenes')}"
TAGS = {"test_00000": "star", "test_00001": "car", "test_00002": "star, flower", "test_00003": "star, house"}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in TAGS:
        with Image.open(f"{SCENES}/JPEGImages/{name}.png") as image:
            image.save(folder / f"{name}.png")
    (tmp_path / "tags.json").write_text(json.dumps(TAGS))
    return folder


def command(photos, out, *more):
    tags = str(photos.parent / "tags.json")
    return ["label", str(photos), "--tags", tags, "--out", str(out), "--batch", "1", *more]


def files(folder):
    kept = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("log")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_masks_lie_on_the_objects(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(photos, out, "--format", "voc,labelme,yolo")) == 0
    assert "4 photos labelled" in capsys.readouterr().out
    table = {name: int(class_id) for class_id, name in json.loads((out / "classes.json").read_text()).items()}
    assert table == {"car": 1, "flower": 2, "house": 3, "star": 4}
    true_ids = {"star": 2, "house": 4, "car": 5, "flower": 7}
    for name, tags in TAGS.items():
        label = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        true = np.asarray(Image.open(f"{SCENES}/SegmentationClass/{name}.png"))
        assert set(np.unique(label)) - {0, 255} <= {table[tag] for tag in tags.split(", ")}
        assert (label == 255).any()
        for tag in tags.split(", "):
            found, wanted = (label == table[tag]) & (label != 255), (true == true_ids[tag]) & (label != 255)
            assert (found & wanted).sum() > 0.5 * (found | wanted).sum(), (name, tag)
    assert (out / "voc/SegmentationClass/test_00000.png").is_file()
    assert json.loads((out / "metadata.json").read_text())["images"][0]["areas"]["star"] > 0


def test_a_server_says_what_is_in_each_photo(photos, tmp_path, monkeypatch, capsys):
    """What was answered is not asked again."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in list(TAGS)[2:]:
        (photos / f"{name}.png").unlink()
    with ChatServer(otherwise=caption("star, wall")) as server:
        given = ["--describe", "--labeler", f"base_url={server.url}", "--out", str(tmp_path / "out")]
        assert main(["label", str(photos), *given]) == 0 and len(server.requests) == 2
        assert main(["label", str(photos), *given]) == 0 and len(server.requests) == 2
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"1": "star", "2": "wall"}
    assert (tmp_path / "out/labels/test_00001.png").is_file() and "2 photos labelled" in capsys.readouterr().out


def test_a_killed_run_goes_on_to_identical_files(photos, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(photos, whole)) == 0
    run = subprocess.Popen(
        [sys.executable, "-m", "goca", *command(photos, killed)], env={**os.environ}, stderr=subprocess.PIPE
    )
    limit = time.monotonic() + 120
    while not list(killed.glob("labels/*.png")) and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (killed / "metadata.json").exists()
    assert main(command(photos, killed)) == 0
    assert files(killed) == files(whole)


def test_two_processes_write_the_files_of_one(photos, tmp_path):
    assert main(command(photos, tmp_path / "one")) == 0
    assert main(command(photos, tmp_path / "two", "--processes", "2")) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (tmp_path / "two/log.1.jsonl").stat().st_size > 0


def test_vocabulary_gives_absent_classes_nothing(photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("house\nstar\nfish\n")
    given = [
        "label",
        str(photos),
        "--vocabulary",
        str(names),
        "--out",
        str(tmp_path / "out"),
        "--doubt",
        "0",
        "--presence",
        "0.9",
    ]
    assert main(given) == 0
    for record in json.loads((tmp_path / "out/metadata.json").read_text())["images"]:
        assert record["unsure"] == [] and record["doubt"] == 0
        for name, presence in record["presence"].items():
            assert presence >= 0.9 or name not in record["areas"]


def test_an_unsure_tag_makes_its_pixels_void(photos, tmp_path):
    assert main(command(photos, tmp_path / "out", "--presence", "1", "--doubt", "0")) == 0
    for path in (tmp_path / "out/labels").iterdir():
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}


def test_a_photo_that_cannot_be_read_is_left_out(photos, tmp_path, capsys):
    (photos / "test_00001.png").write_bytes(b"no image")
    assert main(command(photos, tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert "test_00001: skipped" in said.err and "3 photos labelled" in said.out
    assert not (tmp_path / "out/labels/test_00001.png").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "pascal"], "unknown format 'pascal'"),
        (["--doubt", "2"], "--doubt is 2.0; expected 0 to 1"),
        (["--batch", "0"], "--batch is 0"),
        (["--format", ","], "names no format"),
        (["--refine", "pmar"], "unknown step 'pmar' (nearest: pamr)"),
        (["--model", "sd51"], "sd51"),
    ],
)
def test_bad_arguments(photos, tmp_path, capsys, more, message):
    assert main(command(photos, tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tag_that_the_text_encoder_cuts_is_said(photos, tmp_path, capsys):
    long = "x" * 60
    (tmp_path / "tags.json").write_text(json.dumps({"test_00000": f"star, {long}"}))
    assert main(command(photos, tmp_path / "out", "--allow-missing")) == 1
    said = capsys.readouterr()
    assert f"cut by the text encoder: {long}" in said.err and "1 photos labelled" in said.out
    (record,) = json.loads((tmp_path / "out/metadata.json").read_text())["images"]
    assert record["cut"] == [long]


def test_bad_photos_and_tags(photos, tmp_path, capsys):
    (tmp_path / "tags.json").write_text(json.dumps({"test_00000": "star", "nothing": "cat"}))
    assert main(command(photos, tmp_path / "out")) == 1
    assert "1 tagged photos are not there (nothing)" in capsys.readouterr().err
    assert main(["label", str(tmp_path / "none"), "--tags", "folders", "--out", str(tmp_path / "out")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(command(photos, tmp_path / "out", "--allow-missing")) == 0
    assert main(command(photos, tmp_path / "out", "--allow-missing", "--doubt", "0.3")) == 1
    assert "doubt: 0.1 there, 0.3 now" in capsys.readouterr().err
