"""What a run folder knows of what it was counted from: what has changed since is counted again, or refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
import torch
from commands import MAIN
from goca.benchmark import Benchmark
from goca.benchmark.checks import NothingCounted
from goca.benchmark.fingerprints import MadeFrom, of_pipeline
from goca.benchmark.run_store import RunMismatch, RunStore
from goca.benchmark.sweep import run_together
from goca.cli.hydra_command import interruptible, plain_errors
from goca.datasets import load_dataset
from goca.embedded import resolve
from goca.report.results import table
from PIL import Image
from quick_runs import COUNT, Quick, benchmark, copy_scenes, lines
from safetensors.torch import load_file, save_file


@pytest.fixture
def scenes(tmp_path):
    return copy_scenes(tmp_path)


def alone(scenes):
    shutil.rmtree(scenes.parent / "alone", ignore_errors=True)
    return benchmark(scenes, name="alone").run()


def replace_image(scenes):
    path = scenes / "JPEGImages/test_00001.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def replace_label(scenes):
    path = scenes / "SegmentationClass/test_00001.png"
    stat = path.stat()
    Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def replace_objects(scenes):
    shutil.copy(scenes / "Annotations/test_00002.xml", scenes / "Annotations/test_00001.xml")


def replace_caption(scenes):
    path = scenes.parent / "labels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_00001.png": {"caption": "star, sky"}}))


@pytest.mark.parametrize("change", [replace_image, replace_label, replace_objects, replace_caption])
def test_what_was_changed_is_counted_again_and_said(scenes, change):
    first = benchmark(scenes).run()
    assert first["warnings"]["changed"] == [] and len(lines(scenes.parent / "run")) == COUNT
    change(scenes)
    again = benchmark(scenes).run()
    assert again["counts"] == alone(scenes)["counts"] != first["counts"]
    (changed,) = again["warnings"]["changed"]
    assert changed["image"] == "test_00001" and "changed" in changed["text"]
    assert "1 images were counted again" in table(again).splitlines()[0]
    assert len(lines(scenes.parent / "run")) == COUNT + 1
    assert benchmark(scenes).run()["counts"] == again["counts"] and len(lines(scenes.parent / "run")) == COUNT + 1


def test_runs_together_count_again_what_was_changed(scenes):
    (first,) = run_together([benchmark(scenes, kind=Benchmark)])
    replace_image(scenes)
    for _ in range(2):
        (again,) = run_together([benchmark(scenes, kind=Benchmark)])
        assert again["counts"] != first["counts"] and len(again["warnings"]["changed"]) == 1
        assert len(lines(scenes.parent / "run")) == COUNT + 1


def test_files_that_were_only_touched_or_copied_stay_counted(scenes):
    benchmark(scenes).run()
    for path in scenes.rglob("*"):
        os.utime(path)
    assert benchmark(scenes).run()["warnings"]["changed"] == [] and len(lines(scenes.parent / "run")) == COUNT


def test_a_label_that_goes_and_comes_back(scenes):
    first, path = benchmark(scenes).run(), scenes / "SegmentationClass/test_00001.png"
    content = path.read_bytes()
    path.unlink()
    without = benchmark(scenes).run()
    assert [each["image"] for each in without["images"]["skipped"]] == ["test_00001"]
    assert table(without).splitlines()[0] == "1 of 3 images were skipped; the figures cover the other 2"
    path.write_bytes(content)
    assert benchmark(scenes).run()["counts"] == first["counts"]


def test_of_several_reasons_the_last_is_kept_and_said_once(tmp_path):
    with RunStore(tmp_path, {}) as store:
        for reason in ("missing", "torn"):
            store.append({"image": "a", "skipped": reason})
        assert store.records()["a"]["skipped"] == "torn"
        store.append({"image": "a", "cells": []})
        store.append({"image": "a", "skipped": "missing", "again": 1})
        assert store.records()["a"]["skipped"] == "missing"
        store.append({"image": "a", "cells": [[0, 0, 0, 1]], "again": 1})
        store.append({"image": "a", "cells": []})
        assert store.records()["a"]["cells"].tolist() == [[0, 0, 0, 1]]


def test_several_processes_count_again_what_was_changed(scenes):
    benchmark(scenes).run()
    for change in (replace_image, replace_caption):
        change(scenes)
    assert benchmark(scenes).run(rank=0, world=2) is None
    assert benchmark(scenes).run(rank=1, world=2)["counts"] == alone(scenes)["counts"]
    assert benchmark(scenes).run()["counts"] == alone(scenes)["counts"]


def test_a_folder_of_an_earlier_version_goes_on(scenes):
    first, folder = benchmark(scenes).run(), scenes.parent / "run"
    for path in (folder / "settings.json",):
        stored = json.loads(path.read_text())
        del stored["class_names"], stored["weights"], stored["model"]["flips"]
        path.write_text(json.dumps(stored))
    with RunStore(folder, json.loads((folder / "settings.json").read_text())) as store:
        old = [{key: each[key] for key in each if key not in ("files", "prompt")} for each in store.records().values()]
    (folder / "counts.jsonl").unlink()
    with RunStore(folder, json.loads((folder / "settings.json").read_text())) as store:
        for record in old:
            store.append(record)
    replace_image(scenes)
    assert benchmark(scenes).run()["counts"] == first["counts"] and len(lines(folder)) == COUNT
    assert {"class_names", "weights"} <= set(json.loads((folder / "settings.json").read_text()))
    replace_caption(scenes)
    with pytest.raises(RunMismatch, match="labels"):
        benchmark(scenes).run()


def test_a_class_table_with_swapped_names_is_refused_with_the_difference(scenes):
    benchmark(scenes).run()
    names = json.loads((scenes / "classes.json").read_text())
    names[1], names[2] = names[2], names[1]
    (scenes / "classes.json").write_text(json.dumps(names))
    with pytest.raises(RunMismatch, match=r"class_names\.1: \['(\w+)'\] in the folder, \['(\w+)'\] now"):
        benchmark(scenes).run()


def test_weights_that_were_changed_in_place_are_refused(scenes, tmp_path):
    shutil.copytree(resolve("goca:mini-sd"), tmp_path / "model")
    given = f"model.pipeline={tmp_path / 'model'}"
    benchmark(scenes, given).run()
    path = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    stat, weights = path.stat(), load_file(path)
    name = sorted(weights)[-1]
    weights[name] = weights[name] * 1.5
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if path.stat().st_size == stat.st_size:  # another time: the checksum is not taken from memory
        os.utime(path)
    with pytest.raises(RunMismatch, match="weights: 'sha256:"):
        benchmark(scenes, given).run()


def test_a_pipeline_s_fingerprint_is_of_its_content_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("goca.benchmark.fingerprints.WHOLE", 1000)
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "unet").mkdir(parents=True)
    (one / "model_index.json").write_text("{}")
    tensors = {name: torch.arange(3000.0) for name in ("a", "b")}
    save_file(tensors, one / "unet/model.safetensors")
    (one / "README.md").write_text("a card")
    shutil.copytree(one, two)
    (two / "README.md").write_text("another card")
    assert of_pipeline(str(one)) == of_pipeline(str(two)) != None  # noqa: E711
    save_file(tensors | {"b": tensors["b"] + 1}, two / "unet/model.safetensors")
    assert of_pipeline(str(one)) != of_pipeline(str(two))
    for damaged in (b"", b"\xff" * 4000, (10).to_bytes(8, "little") + b'{"a":[1]} ' + b"x" * 4000):
        (two / "unet/model.safetensors").write_bytes(damaged)
        assert of_pipeline(str(one)) != of_pipeline(str(two))
    assert of_pipeline("some/hub-id") is None and of_pipeline(None) is None and of_pipeline("goca:nothing") is None


def test_looking_through_many_images_is_quick(tmp_path):
    """Three files of each of 5000 images: a small part of what reading the log takes."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(b"x" * 100)
    sample = load_dataset(
        {"name": "scenes", "reader": "voc", "root": "goca:scenes", "split": "test", "classes": "classes.json"}
    ).sample("test_00000")
    sample.image_path, sample.label_path, sample.sources = *paths[:2], paths[2:]
    made_from = MadeFrom(tmp_path, lambda name: "star, sky")
    record = made_from.of(sample)
    assert set(record["files"]) == {"0.png", "1.png", "2.png"} and record["prompt"]
    start = time.process_time()
    assert not any(made_from.changed(record) for _ in range(5000))
    assert time.process_time() - start < 2


# ---- the command


def test_a_run_that_counted_nothing_fails_and_says_why_first(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Benchmark, "predictor", Quick.predictor)
    for path in (scenes / "SegmentationClass").glob("*.png"):
        Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    given = [
        "model=mini-sd",
        "dataset=scenes",
        f"dataset.root={scenes}",
        f"dataset.labels={tmp_path / 'labels.json'}",
        "device=cpu",
        "run_dir=run",
    ]
    done = commands.main(monkeypatch, capsys, tmp_path, *given)
    assert done.code and "no image was counted" in done.err
    name, first, second = done.out.strip().splitlines()[:3]
    assert name == "run" and first == "3 of 3 images were skipped: no image was counted"
    assert second.startswith("  3 x label <image>.png has mode RGB and colours other")
    library = Benchmark.of(commands.values(*given[:-1], f"run_dir={tmp_path / 'library'}"))
    with pytest.raises(NothingCounted, match=r"all 3 were skipped, the first because: label .* mode RGB") as error:
        library.run()
    assert error.value.runs[tmp_path / "library"]["mIoU"]["best"]["mIoU"] is None
    assert (tmp_path / "library" / "results.json").is_file()


def test_interrupted_it_ends_without_a_traceback_and_goes_on(scenes, tmp_path):
    given = ["model=mini-sd", "dataset=scenes", "device=cpu", "run_dir=run"]
    process = subprocess.Popen(
        [sys.executable, MAIN, *given],
        cwd=tmp_path,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    counts = tmp_path / "run/counts.jsonl"
    while not (counts.exists() and b'"cells"' in counts.read_bytes()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and "interrupted; counted images are kept" in said and "Traceback" not in said


def test_ctrl_c_that_was_lost_in_a_clean_up_ends_the_run_at_the_next_image(capsys):
    handler, seen = signal.getsignal(signal.SIGINT), []
    with pytest.raises(SystemExit) as ended, plain_errors("run again"):
        for number in interruptible(range(5)):
            seen.append(number)
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
    assert seen == [0] and ended.value.code == 130 and "interrupted; run again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(interruptible([1, 2])) == [1, 2]
