"""What a newcomer runs: the embedded model on the embedded pictures, from the command line, compared and drawn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
MAIN, COMPARE, STUDY = (
    str(REPOSITORY / name) for name in ("src-main/main.py", "scripts/compare_runs.py", "scripts/study_scenes.py")
)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    for model in ("mini-sd-vanilla", "mini-sd"):
        run(folder, MAIN, f"model={model}", "dataset=scenes", "limit=12", f"run_dir={model}")
    return folder


def test_both_methods_beat_chance_by_far_on_the_embedded_test_set(runs):
    for model in ("mini-sd-vanilla", "mini-sd"):
        results = json.loads((runs / model / "results.json").read_text())
        assert results["images"]["counted"] == 12 and not results["images"]["skipped"]
        assert results["mIoU"]["best"]["mIoU"] > 0.25  # objects fill a quarter of a picture: chance is about 0.1
        assert results["config"]["model"]["pipeline"] == "goca:mini-sd"


def test_finished_runs_are_compared_and_drawn(runs):
    runs_named = ("vanilla=mini-sd-vanilla", "GoCA=mini-sd")
    shown = run(runs, COMPARE, *runs_named, "--figure", "p.png", "--images", "2")
    results = [json.loads((runs / model / "results.json").read_text()) for model in ("mini-sd-vanilla", "mini-sd")]
    means = " | ".join(f"{100 * each['mIoU']['best']['mIoU']:.1f}" for each in results)
    assert f"| **mean** | {means} |" in shown
    with Image.open(runs / "p.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**24)) > 500


def test_a_folder_without_results_is_named(runs):
    done = subprocess.run([sys.executable, COMPARE, "x=nowhere"], cwd=runs, capture_output=True, text=True)
    assert done.returncode != 0 and "nowhere has no results.json" in done.stderr


def test_the_study_gives_every_part_under_both_protocols(tmp_path):
    shown = run(tmp_path, STUDY, "parts", "--count", "3", "--seeds", "1", "--limit", "3", "--work", "study")
    entries = json.loads((tmp_path / "study/parts.json").read_text())
    columns = [(split, protocol) for split in ("test", "fresh") for protocol in ("paper", "released")]
    assert list(dict.fromkeys((e["split"], e["protocol"]) for e in entries)) == columns
    assert len(entries) == 4 * 5 and all(0 <= e["best"] <= 100 and e["fixed"] <= e["best"] for e in entries)
    assert shown.count("| GoCA |") == 1


def test_segmenting_ones_own_picture_takes_three_lines(tmp_path):
    from goca import Segmenter

    picture = REPOSITORY / "src-main/goca/embedded/scenes/JPEGImages/test_00000.png"
    segmentation = Segmenter.from_pretrained(None, "mini-sd")(picture, "star, wall, snow")
    segmentation.save(tmp_path / "labels.png")
    assert Image.open(tmp_path / "labels.png").size == Image.open(picture).size
    assert segmentation.names == ["star", "wall", "snow", "background"]


def test_parts_in_brackets_belong_to_the_word_before_them():
    from goca import Segmenter

    segmenter = Segmenter.from_pretrained(None, "mini-sd")
    annotation, names = segmenter.read_prompt("(House, roof), car, sky, car,")
    assert names == {1: "house", 2: "car", 3: "sky"} and annotation.caption == "house, roof, car, sky"
    assert [len(tokens) for tokens in annotation.existent_objects.values()] == [2, 1, 1]
