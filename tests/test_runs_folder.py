"""What a run never does to files that are not its own, and its temporary files."""

import os
import shutil
import subprocess
import sys

import pytest
from goca.benchmark.run_store import RunError, RunStore
from goca.datasets import load_dataset
from goca.errors import GocaError
from goca.files.atomic import host, sweep, whole_file
from quick_runs import COUNT, Quick, benchmark, copy_scenes


@pytest.fixture
def scenes(tmp_path):
    return copy_scenes(tmp_path)


@pytest.mark.parametrize("name", ["report.html", "counts.jsonl", "counts.3.jsonl", "results.json", "evaluation.txt"])
def test_a_folder_with_other_files_of_these_names_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=rf"no settings\.json, and a run would overwrite {name}; choose another"):
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
    with pytest.raises(RunError, match="contains no settings"):
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
