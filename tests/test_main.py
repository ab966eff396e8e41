"""The command, from any folder: what is refused and how, and going on where it stopped."""

import json
import subprocess
import sys

import commands
import pytest
import trees
from commands import MAIN
from goca.benchmark import Benchmark
from goca.benchmark.run_store import RunMismatch, RunStore
from goca.config import ConfigError
from goca.datasets import DatasetError


@pytest.fixture
def voc_mini():
    return trees.voc_mini()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return lambda *arguments: commands.main(monkeypatch, capsys, tmp_path, *arguments)


def fields(goldens, voc_mini, model, run_dir, **change):
    dataset = {
        "name": "voc",
        "reader": "voc",
        "root": f"{voc_mini}/VOCdevkit/VOC2012",
        "split": "train",
        "reverse": True,
        "classes": "voc",
        "labels": f"{voc_mini}/gpt_output/voc.json",
        "add_background": True,
        "add_missing": True,
        "thresholds": [-0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4],
    }
    sizes = {"img_size": 256, "feat_size": 32}
    return {
        "model": {"of": model, "pipeline": f"{goldens}/pipelines/sd15", **sizes},
        "dataset": dataset | change.pop("dataset", {}),
        "protocol": "released",
        "run_dir": run_dir,
        "device": "cpu",
        "noise_file": f"{voc_mini}/noise.npz",
        **change,
    }


def test_the_command_runs_from_any_folder_and_goes_on(goldens, voc_mini, tmp_path, command):
    (tmp_path / "mine.json").write_bytes((voc_mini / "gpt_output/voc.json").read_bytes())
    given = [*commands.voc_mini(goldens), "dataset.labels=mine.json", "protocol=released", "protocol.noise=nominal"]
    given = [each for each in given if not each.startswith("dataset.labels=/")]
    first = [sys.executable, MAIN, *given, "limit=2"]
    own = subprocess.run(first, cwd=tmp_path, env=commands.environment(), capture_output=True, text=True)
    assert own.returncode == 0, own.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sd15-voc-released,") and "protocol.noise=nominal" in folder.name
    counts = folder / "counts.jsonl"
    assert counts.read_text().count('"cells"') == 2
    before = counts.read_bytes()
    done = command(*given)
    assert done.code == 0, done.err
    assert counts.read_bytes().startswith(before) and counts.read_text().count('"cells"') == 5
    results = json.loads((folder / "results.json").read_text())
    assert results["protocol"] | {"preset": None, "noise": "nominal", "void": "background"} == results["protocol"]
    assert results["config"]["choices"] == {"model": "sd15", "dataset": "voc", "protocol": "released"}
    assert results["config"]["model"]["head_method"] == "dot-product w/o clamp"
    assert results["computed"][0] | {"images": 5, "device": "cpu", "dtype": "float32"} == results["computed"][0]
    assert "mIoU" in done.out and "5 of 5 images" in done.out and str(folder.name) in done.out
    with pytest.raises(RunMismatch, match="seed: 0 in the folder, 7 now"):
        Benchmark.of({**results["config"], "run_dir": folder, "seed": 7}).run()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model=sd51"], "sd15-vanilla"),
        (["dataset=vox"], "scenes"),
        (["protocol=papers"], "released"),
        (["model=sd15", "dataset=voc"], "dataset.root is not set; give the folder of 'voc'"),
        (["model=sd15", "dataset=voc", "dataset.root=nowhere"], "SegmentationClass/<id>.png"),
        (["model=sd15", "model.head_method=median"], "dot-product w/o clamp"),
        (["model=sd15", "protocol.noise=loud"], "nominal, pipeline"),
        (["model=sd15", "model.pipeline=nothing-here", "limit=1"], "neither a folder nor a hub id"),
    ],
)
def test_what_is_refused_is_said_in_a_few_words(tmp_path, command, given, message):
    done = command(*given)
    assert done.code and message in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.glob("*.log")) and not (tmp_path / "outputs").exists()


def test_a_run_folder_of_another_data_set_is_refused(goldens, tmp_path, command):
    run = Benchmark.of(commands.values(*commands.voc_mini(goldens), f"run_dir={tmp_path / 'run'}"))
    with RunStore(run.run_dir, run.settings()):
        pass
    done = command("model=sd15", "dataset=scenes", "run_dir=run")
    assert done.code and "has counts made with other settings" in done.err
    assert "dataset.name: 'voc' in the folder, 'scenes' now" in done.err and "Traceback" not in done.err


def test_images_that_were_skipped_are_listed_and_an_error_only_if_asked(goldens, voc_mini, tmp_path, command):
    labels = json.loads((voc_mini / "gpt_output/voc.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({"2007_000005.jpg": labels["2007_000005.jpg"]}))
    given = [each for each in commands.voc_mini(goldens) if "labels" not in each] + ["dataset.labels=mine.json"]
    done = command(*given, "run_dir=run")
    assert done.code == 0 and "1 of 5 images" in done.out and "4 skipped:" in done.out
    for number in range(1, 5):
        assert f"  2007_00000{number}: no caption for 2007_00000{number}.jpg in mine.json" in done.out
    assert "strict=true, and 4 images were skipped" in command(*given, "run_dir=run", "strict=true").err


def test_labels_that_are_not_there_say_how_to_get_them(goldens, voc_mini, tmp_path):
    config = fields(goldens, voc_mini, "sd15", tmp_path, dataset={"labels": "no.json"})
    with pytest.raises(DatasetError, match=r"no\.json is not a file; .*gpt_output/README\.md"):
        Benchmark.of(config).run()


@pytest.mark.parametrize("limit", [0, -1, "all"])
def test_a_limit_is_a_number_of_images(goldens, voc_mini, tmp_path, limit):
    with pytest.raises(ConfigError, match="limit is"):
        Benchmark.of(fields(goldens, voc_mini, "sd15", tmp_path, limit=limit))


def test_one_background_map_is_needed(goldens, voc_mini, tmp_path):
    config = fields(goldens, voc_mini, "sd15", tmp_path)
    config["model"]["keep_all_objects"] = True
    with pytest.raises(ConfigError, match="keep_all_objects"):
        Benchmark.of(config)


def test_a_prompt_without_a_class_is_background_and_a_lost_class_is_noted(goldens, voc_mini, tmp_path):
    commands.caption(*commands.voc_mini(goldens), f"annotations={tmp_path / 'annotations.json'}")
    annotations = json.loads((tmp_path / "annotations.json").read_text())
    annotations["2007_000005.jpg"]["existent_objects"] = {}
    annotations["2007_000004.jpg"]["existent_objects"] = {"20": []}
    del annotations["2007_000003.jpg"]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    config = fields(goldens, voc_mini, "sd15", tmp_path, annotations=tmp_path / "annotations.json", protocol="paper")
    results = Benchmark.of(config).run()
    assert results["warnings"]["no_class"] == ["2007_000005"]
    assert results["warnings"]["lost_classes"] == [{"image": "2007_000004", "classes": ["tvmonitor"]}]
    assert any(note["image"] == "2007_000004" for note in results["warnings"]["notes"])
    assert [each["image"] for each in results["images"]["skipped"]] == ["2007_000003"]
    assert "no annotation" in results["images"]["skipped"][0]["reason"]


def test_a_switch_called_nan_and_fields_that_few_models_set(tmp_path, command):
    command(
        "model=mini-sd",
        "dataset=scenes",
        "limit=1",
        "device=cpu",
        "protocol=paper",
        "protocol.empty_class=nan",
        "model.draws=2",
        "model.flips=true",
        "run_dir=run",
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"]["empty_class"] == results["config"]["protocol"]["empty_class"] == "nan"
    assert results["config"]["model"]["draws"] == 2 and results["images"]["counted"] == 1
