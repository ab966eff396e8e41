"""A run's folder: lines survive, other settings are refused, and any way of running gives the same counts."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from goca.benchmark.counting import CountedRun, count_images
from goca.benchmark.inputs import Captions, InputError, NoiseFile
from goca.benchmark.prediction import Prediction
from goca.benchmark.run_store import RunError, RunMismatch, RunStore
from goca.benchmark.tasks import metric_for
from goca.benchmark.word_prompts import WordPrompts
from goca.benchmark.word_sources import WORD_SOURCES, Asked
from goca.datasets import SampleError
from goca.files.log import sealed_lines
from goca.prompts import AnnotationError
from goca.protocol import SWITCHES, Protocol
from goca.report.provenance import revision
from goca.report.results import evaluation_text, table
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_runs import CONFIG, IDS, Toy, each, run, segment


def test_results_hold_what_a_reader_asks(tmp_path):
    results = run(tmp_path)
    assert results["images"]["listed"] == 12 and results["images"]["counted"] == 10
    reasons = {each["image"]: each["reason"] for each in results["images"]["skipped"]}
    assert reasons["i3"] == "label i3.png cannot be read" and "label holds [77]" in reasons["i5"]
    assert results["protocol"]["preset"] == "paper" and len(results["protocol"]) == 1 + len(SWITCHES)
    assert [line["threshold"] for line in results["mIoU"]["swept"]] == [-0.1, 0, 0.1]
    assert results["mIoU"]["fixed"]["threshold"] == 0.05 and results["mIoU"]["fixed"]["mIoU"] > 0
    assert results["per_class"][2]["name"] == "dog" and results["per_class"][3]["iou_best"] is None  # no fish: skipped
    assert results["warnings"]["lost_classes"] == [{"image": "i1", "classes": ["cat"]}]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (tmp_path / "evaluation.txt").read_text()
    assert text == evaluation_text(results) and text.splitlines()[1].endswith("at background_threshold 0")
    assert "10 of 12 images" in table(results) and "i3" in table(results)


def test_void_counts_as_background_where_the_protocol_says_so(tmp_path):
    paper, released = run(tmp_path / "a"), run(tmp_path / "b", protocol="released", settings={"void": "background"})
    pixels = [sum(each["label_pixels"] for each in results["per_class"]) for results in (paper, released)]
    assert pixels[1] == 10 * 63 > pixels[0]
    assert released["per_class"][3]["iou_best"] == 0  # no fish: counted as 0


def test_nothing_to_look_for_is_background_everywhere(tmp_path):
    results = run(tmp_path, segment=each(lambda sample: Prediction(None, ())))
    assert len(results["warnings"]["no_class"]) == 10
    assert np.array(results["counts"]["intersection"])[:, 1:].sum() == 0


def test_a_finished_run_is_summed_up_again_without_a_model(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "counts.jsonl").read_bytes()

    def no_model(sample):
        raise AssertionError(f"{sample.id} was segmented again")

    assert run(tmp_path, segment=no_model) == first
    assert (tmp_path / "counts.jsonl").read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1))
def test_cut_anywhere_and_started_again_the_counts_are_the_same(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("run")
    whole = run(folder)
    content = (folder / "counts.jsonl").read_bytes()
    (folder / "counts.jsonl").write_bytes(content[: round(kept * len(content))])
    again = run(folder)
    assert again["counts"] == whole["counts"] and again["images"] == whole["images"]
    assert all(line.endswith(b"}") for line in (folder / "counts.jsonl").read_bytes().splitlines())


def test_a_damaged_line_is_done_again(tmp_path):
    whole = run(tmp_path)
    lines = (tmp_path / "counts.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"cells":[[', b'"cells":[[1,1,0,9],[')
    (tmp_path / "counts.jsonl").write_bytes(b"".join(lines))
    assert run(tmp_path)["counts"] == whole["counts"]


def slow_run(folder):
    run(folder, segment=lambda sample: time.sleep(0.01) or segment(sample))


def test_killed_again_and_again_at_any_moment_the_counts_are_the_same(tmp_path):
    """kill -9 of a real process, at moments drawn anew each time, until a process gets to the end."""
    expected, moments, kills = run(tmp_path / "undisturbed"), random.Random(), 0
    while not (tmp_path / "run" / "results.json").exists():
        process = multiprocessing.get_context("fork").Process(target=slow_run, args=(tmp_path / "run",))
        process.start()
        process.join(moments.uniform(0, 0.1 + 0.02 * kills))  # on a busy machine no step may fit into the first ones
        kills += process.is_alive()
        os.kill(process.pid, signal.SIGKILL) if process.is_alive() else None
        process.join()
    assert kills > 0
    assert run(tmp_path / "run")["counts"] == expected["counts"]
    counted = [record["image"] for record in sealed_lines(tmp_path / "run/counts.jsonl") if "cells" in record]
    assert len(counted) == len(set(counted)) == 10  # nothing was done twice


@pytest.mark.parametrize("world", [2, 3, 20])
def test_any_number_of_processes_counts_the_same(tmp_path, world):
    expected = run(tmp_path / "alone")
    outcomes = [run(tmp_path / "shared", rank=rank, world=world) for rank in range(world)]
    assert outcomes[-1]["counts"] == expected["counts"]
    assert all(outcome is None for outcome in outcomes[: min(world, len(IDS)) - 1])
    assert run(tmp_path / "shared")["counts"] == expected["counts"]


def test_other_settings_are_refused_with_the_difference(tmp_path):
    run(tmp_path, settings={"model": {"t": 100, "head": "average"}, "seed": 0})
    with pytest.raises(RunMismatch, match=r"model\.t: 100 in the folder, 200 now\n    limit: 'nothing'.*, 3 now\n"):
        RunStore(tmp_path, {"model": {"t": 200, "head": "average"}, "seed": 0, "limit": 3})


def test_more_images_go_on_from_fewer(tmp_path):
    assert run(tmp_path, ids=IDS[:4])["images"]["listed"] == 4
    assert run(tmp_path)["counts"] == run(tmp_path / "whole")["counts"]
    assert run(tmp_path, ids=IDS[:4])["images"]["listed"] == 4


def test_two_writers_are_refused(tmp_path):
    with RunStore(tmp_path, {}), pytest.raises(RunError, match="another process is writing"):
        RunStore(tmp_path, {})


@contextlib.contextmanager
def room_for(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kept", [1000, 1300, 2100])
def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, kept):
    with room_for(kept), pytest.raises(RunError, match="free some space and run again: counted images are kept"):
        run(tmp_path / "run")
    content = (tmp_path / "run/counts.jsonl").read_bytes()
    assert len(list(sealed_lines(tmp_path / "run/counts.jsonl"))) == content.count(b"\n") > 0
    assert content.endswith(b"\n")
    assert run(tmp_path / "run")["counts"] == run(tmp_path / "roomy")["counts"]
    assert (tmp_path / "run/counts.jsonl").read_bytes().startswith(content)  # what was counted was not counted again


def test_a_disk_that_is_full_at_the_start_or_at_the_end(tmp_path):
    with room_for(0), pytest.raises(RunError, match=r"settings\.json cannot be written"):
        run(tmp_path)
    whole = run(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with room_for(100), pytest.raises(RunError, match=r"(evaluation\.txt|results\.json) cannot be written"):
        run(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before and not list(tmp_path.glob("*.tmp"))
    assert run(tmp_path) == whole


def test_each_image_is_on_disk_before_the_next_is_begun(tmp_path, monkeypatch):
    forced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (forced.append(file), fsync(file)))
    seen = []

    def look(sample):
        lines = (tmp_path / "counts.jsonl").read_bytes().count(b"\n")
        seen.append((lines, len(forced) - 1))  # one was for settings.json
        return segment(sample)

    run(tmp_path, segment=look)
    assert [lines for lines, _ in seen] == [forces for _, forces in seen] == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]


def test_counting_while_the_next_images_are_segmented_changes_nothing(tmp_path, monkeypatch):
    whole, fsync, begun = run(tmp_path / "one"), os.fsync, threading.Event()

    def wait(file):  # the first record is written only when the second image is being segmented
        if threading.current_thread().name.startswith("goca-count"):
            assert begun.wait(10)
        fsync(file)

    def look(cases):
        if cases[0].sample.id == "i1":
            begun.set()
        return segment(cases)

    monkeypatch.setattr(os, "fsync", wait)
    assert run(tmp_path / "two", segment=look, behind=2)["mIoU"] == whole["mIoU"] and begun.is_set()
    first, second = (
        [{**json.loads(line), "seconds": None, "crc32": None} for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one/counts.jsonl", "two/counts.jsonl")
    )
    assert first == second


def test_results_say_what_the_counts_were_made_with(tmp_path):
    origins = [{"device": "cpu", "dtype": "float32"}, {"device": "cuda (a card)", "dtype": "float16"}]
    for ids, origin in [(IDS[:3], origins[0]), (IDS, origins[1]), (IDS, origins[0])]:
        with RunStore(tmp_path, {"t": 100}) as store:
            store.declare(origin)
            metric = metric_for(Toy(), CONFIG, Protocol.of("paper"), extra=[0.05])
            count_images(Toy(), ids, [CountedRun(store, metric, ids)], lambda: segment)
    results = run(tmp_path)
    assert results["computed"] == [{"images": 7, **origins[1]}, {"images": 3, **origins[0]}]
    assert (tmp_path / "counts.jsonl").read_bytes().count(b'"origin"') == 2
    assert results["versions"]["numpy"] == np.__version__ and results["labels"] is None


def test_the_commit_is_that_of_the_checkout_the_code_runs_from(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # a hook's, not ours
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    for name in ("kept.py", "installed.py"):
        (tmp_path / name).write_text("")
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for arguments in (["init", "-q"], ["add", "kept.py"], ["commit", "-qm", "x"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True, env=own)
    commit = revision(tmp_path / "kept.py")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "kept.py").write_text("changed")
    assert revision(tmp_path / "kept.py") == f"{commit}-dirty"
    assert revision(tmp_path / "installed.py") is None  # as in a virtual environment below a checkout
    assert revision(tmp_path / "nowhere" / "x.py") is None
    monkeypatch.setenv("PATH", "")
    assert revision(tmp_path / "kept.py") is None


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert run(tmp_path)["images"]["counted"] == 10


def test_a_run_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be created"):
        RunStore(tmp_path / "file", {})


def test_captions_are_found_or_the_image_is_skipped(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"a.jpg": {"caption": "cat"}, "b.jpg": {"caption": 3}}))
    source = WordPrompts(WORD_SOURCES["present"], Asked(Toy.class_names), Captions(path), Protocol())
    prompts = source.annotated(lambda offer: (offer.caption, offer.class_ids))
    sample = SimpleNamespace(name="a.jpg", present=[1], remarks=[])
    assert prompts(sample) == ("cat", [1])
    for name, message in [("b.jpg", "expected"), ("c.jpg", r"no caption for c\.jpg in labels\.json")]:
        with pytest.raises(SampleError, match=message):
            prompts(SimpleNamespace(name=name, present=[]))
    path.write_text('{"a.jpg": {"capt')
    with pytest.raises(AnnotationError, match="not JSON"):
        Captions(path)


def test_noise_is_one_for_all_or_one_per_image(tmp_path):
    np.savez(tmp_path / "shared.npz", noise=np.ones(3))
    np.savez(tmp_path / "each.npz", a=np.zeros(2))
    a, b = SimpleNamespace(id="a", name="a.jpg"), SimpleNamespace(id="b", name="b.jpg")
    assert NoiseFile(tmp_path / "shared.npz")(b).tolist() == [1, 1, 1]
    assert NoiseFile(tmp_path / "each.npz")(a).tolist() == [0, 0]
    with pytest.raises(SampleError, match="no noise for b"):
        NoiseFile(tmp_path / "each.npz")(b)
    (tmp_path / "not.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "objects.npz", noise=np.array([{}], dtype=object))
    for name in ("not.npz", "missing.npz", "objects.npz"):
        with pytest.raises(InputError, match=r"expected an \.npz"):
            NoiseFile(tmp_path / name)
