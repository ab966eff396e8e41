"""What a run folder knows of what it was counted from, and what it never does to what is not its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import MAIN
from goca.benchmark import Benchmark
from goca.benchmark.checks import NothingCounted
from goca.benchmark.fingerprints import MadeFrom, of_pipeline
from goca.benchmark.prediction import Prediction
from goca.benchmark.run_store import RunError, RunMismatch, RunStore
from goca.benchmark.sweep import run_together
from goca.cli.hydra_command import interruptible, told
from goca.datasets import SampleError, load_dataset
from goca.embedded import resolve
from goca.errors import GocaError
from goca.files.atomic import host, sweep, whole_file
from goca.files.log import sealed_lines
from goca.report.results import table
from PIL import Image
from safetensors.torch import load_file, save_file

SCENES = Path(resolve("goca:scenes"))
COUNT = 3


class Quick(Benchmark):
    """A run whose scores are drawn by the image and its caption, without a model."""

    def predictor(self, dataset, source, noise, store):
        prompts = source.annotated(lambda offer: f"{offer.caption} {offer.class_ids}")

        def predict(sample):
            try:
                seed = zlib.crc32(sample.image.tobytes() + prompts(sample).encode())
            except SampleError as error:
                return error
            return Prediction(np.random.default_rng(seed).random((3, 8, 8)), [1, 2])

        return lambda cases: [predict(case.sample) for case in cases]


@pytest.fixture
def scenes(tmp_path):
    """A few of the embedded scenes, in a folder that may be changed."""
    root = tmp_path / "scenes"
    ids = [f"test_{number:05}" for number in range(COUNT)]
    for image_id in ids:
        for part, ending in (("JPEGImages", ".png"), ("SegmentationClass", ".png"), ("Annotations", ".xml")):
            (root / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(SCENES / part / f"{image_id}{ending}", root / part)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(ids))
    shutil.copy(SCENES / "classes.json", root)
    captions = json.loads((commands.ROOT / "gpt_output/scenes.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({f"{each}.png": captions[f"{each}.png"] for each in ids}))
    return root


def benchmark(scenes, *more, name="run", kind=Quick):
    place = scenes.parent
    given = ["model=mini-sd", "dataset=scenes", f"dataset.root={scenes}", f"dataset.labels={place / 'labels.json'}"]
    return kind(**vars(Benchmark.of(commands.values(*given, "device=cpu", f"run_dir={place / name}", *more))))


def lines(folder):
    return [record for record in sealed_lines(folder / "counts.jsonl") if "cells" in record or "skipped" in record]


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


# ---- what is not its own


@pytest.mark.parametrize("name", ["report.html", "counts.jsonl", "counts.3.jsonl", "results.json", "evaluation.txt"])
def test_a_folder_with_other_files_of_these_names_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=rf"no settings\.json, and a run would write over {name}; choose another"):
        RunStore(tmp_path, {})
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_files_of_other_names_are_left_alone(scenes):
    folder = scenes.parent / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    benchmark(scenes).run()
    (folder / "gallery/mine.webp").write_bytes(b"mine")
    benchmark(scenes).run()
    assert (folder / "gallery/mine.webp").read_bytes() == b"mine" and (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["counts.jsonl", "gallery", "report.html"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text("{}")
    target = tmp_path / "target"
    target.mkdir() if name == "gallery" else target.write_text("half a line")
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(RunError, match=f"{name} is a link"):
        RunStore(tmp_path / "run", {})
    assert name == "gallery" or target.read_text() == "half a line"


@pytest.mark.parametrize("way", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_while_it_is_written_to_ends_the_run_with_an_error(tmp_path, way):
    folder = tmp_path / "run"
    with RunStore(folder, {}) as store:
        store.append({"image": "a", "cells": []})
        shutil.rmtree(folder) if way == "removed" else folder.rename(tmp_path / "elsewhere")
        if way == "replaced":
            folder.mkdir()
            (folder / "counts.jsonl").write_text("")
        for step in (lambda: store.append({"image": "b", "cells": []}), store.records):
            with pytest.raises(RunError, match="was removed or moved while the run was writing to it"):
                step()


def test_a_run_that_fails_before_it_counts_leaves_nothing(scenes, monkeypatch):
    def fail(*_):
        raise OSError("nothing-here")

    monkeypatch.setattr(Quick, "predictor", fail)
    folder = scenes.parent / "run"
    with pytest.raises(Exception, match="nothing-here"):
        benchmark(scenes).run()
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(Exception, match="nothing-here"):
        benchmark(scenes).run()
    assert list(folder.iterdir()) == []


def test_counts_files_of_any_content_are_no_crash(scenes):
    folder = scenes.parent / "run"
    first = benchmark(scenes).run()
    with (folder / "counts.jsonl").open("ab") as file:
        file.write(b'{"image":' + b"[" * 100_000 + b"\n")
        file.write(b'{"image":"x","cells":' + b"9" * 5000 + b"}\n\xff\xfe\n[]\n")
    assert benchmark(scenes).run()["counts"] == first["counts"]
    (folder / "settings.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="is not JSON"):
        benchmark(scenes).run()
    (folder / "settings.json").write_text("[]")
    with pytest.raises(RunError, match="holds no settings"):
        benchmark(scenes).run()


@pytest.mark.parametrize("cells", [3, "x", [[1]], [[2**70, 0, 0, 0]], [["a"] * 4], {"a": 1}, [[0.5, 0, 0, 0]]])
def test_a_sealed_line_of_another_form_is_a_named_error(scenes, cells):
    run = benchmark(scenes)
    with run.store(load_dataset(run.dataset)) as store:
        for number in range(COUNT):
            store.append({"image": f"test_{number:05}", "cells": cells, "classes": [], "lost": [], "notes": []})
    with pytest.raises(ValueError) as caught:
        run.run()
    assert isinstance(caught.value, GocaError) and "counts" in str(caught.value)


# ---- temporary files


def test_temporary_files_of_dead_processes_are_swept_on_start(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "gallery").mkdir()
    names = [f"results.json.{host()}-{ended.pid}-0123abcd.tmp", f"gallery/x.webp.{host()}-{ended.pid}-0123abcd.tmp"]
    kept = [
        f"results.json.{host()}-{os.getpid()}-0123abcd.tmp",
        f"a.ffffff-{ended.pid}-0123abcd.tmp",
        "mine.tmp",
        f"b.{'0' * 8}.tmp",
    ]
    for name in names + kept:
        (tmp_path / name).write_text("")
    (tmp_path / "settings.json").write_text("{}")
    with RunStore(tmp_path, {}):
        assert not any((tmp_path / name).exists() for name in names)
        assert all((tmp_path / name).exists() for name in kept)
    for name in kept:
        os.utime(tmp_path / name, (0, 0))
    assert {path.name for path in sweep(tmp_path)} == set(kept[1:2] + kept[3:])


def test_a_killed_writer_leaves_one_file_that_the_next_start_removes(tmp_path):
    write = "with whole_file(sys.argv[1]) as path: path.write_text('half'); print(flush=True); time.sleep(60)"
    code = f"import sys, time; from goca.files.atomic import whole_file\n{write}"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "report.html")], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert sweep(tmp_path) == []
    process.kill()
    process.wait()
    assert len(sweep(tmp_path)) == 1 and list(tmp_path.iterdir()) == []
    with whole_file(tmp_path / "report.html") as path:
        path.write_text("whole")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


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
    with pytest.raises(NothingCounted, match=r"all 3 were skipped, the first because: label .* mode RGB") as error:
        Benchmark.of(commands.values(*given[:-1], f"run_dir={tmp_path / 'library'}")).run()
    assert error.value.results["mIoU"]["best"]["mIoU"] is None
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
    assert process.returncode == 130 and "interrupted; what is counted is kept" in said and "Traceback" not in said


def test_ctrl_c_that_was_lost_in_a_clean_up_ends_the_run_at_the_next_image(capsys):
    handler, seen = signal.getsignal(signal.SIGINT), []
    with pytest.raises(SystemExit) as ended, told("run again"):
        for number in interruptible(range(5)):
            seen.append(number)
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
    assert seen == [0] and ended.value.code == 130 and "interrupted; run again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(interruptible([1, 2])) == [1, 2]
