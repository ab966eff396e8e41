"""The labelling command: pricing, going on after a kill, and what it says of pictures without a caption."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import CAPTION, ChatServer, caption, echo_escaped_key, echo_key, slow, voc_tree
from goca.labeling import Answers, KeyMissing, LabelingError
from goca.prompts import read_captions
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "src-main" / "gpt_labeling.py"
KEY = "sk-test-fedcba9876543210"
WORKERS = 3


def label(*overrides):
    """The command's work in this process, for the sake of time."""
    spec = importlib.util.spec_from_file_location("gpt_labeling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("labeling", overrides=list(overrides))
    module.label(OmegaConf.to_container(config, resolve=True))


def start(*overrides, **environment):
    """The command as a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", **environment}
    return subprocess.Popen([sys.executable, SCRIPT, *overrides], env=environment, cwd=ROOT, **pipes)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """settings(server) for the command, on a small data set in tmp_path/voc; labels go to tmp_path/out."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    voc_tree(tmp_path / "voc", 24)

    def settings(server=None):
        return [
            "dataset=voc",
            f"dataset.root={tmp_path / 'voc'}",
            f"labels={tmp_path / 'out' / 'voc.json'}",
            f"labeler.base_url={server.url if server else 'http://127.0.0.1:9/v1'}",
            f"labeler.workers={WORKERS}",
            "labeler.first_wait=0.01",
            "labeler.retries=1",
            "labeler.timeout=10",
        ]

    return settings


def test_dry_run_prices_without_key_server_or_file(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    label(*tree(), "dry_run=true", "limit=10")
    said = capsys.readouterr().out
    assert "10 images of voc to ask gpt-4o" in said and "tokens in, 400 out, $0.0" in said
    assert "nothing was asked" in said and not (tmp_path / "out").exists()
    label(*tree(), "dry_run=true", "labeler=local", "labeler.model=see-1")
    assert "24 images of voc to ask see-1" in capsys.readouterr().out


def test_a_whole_run_and_what_it_says(tree, tmp_path, capsys):
    plan = {3: [caption("")], 5: [caption(None, refusal="No.")]}
    (tmp_path / "voc" / "JPEGImages" / "2007_000007.jpg").write_bytes(b"no picture")
    with ChatServer(plan) as server:
        label(*tree(server))
        said = capsys.readouterr()
        assert "21 captions" in said.out and "2 without a caption" in said.out and "1 skipped" in said.out
        assert "2007_000005.jpg: refused: No." in said.out and "2007_000007.jpg" in said.out
        assert "$0.0" in said.out and "failed=2" in said.err and "24/24" in said.err
        captions, refused = read_captions(tmp_path / "out" / "voc.json")
        assert not refused and len(captions) == 21 and set(captions.values()) == {CAPTION}
        assert next(iter(captions)) == "2007_000023.jpg"  # the order of the list, which VOC visits from its end
        with pytest.raises(SystemExit, match="strict=true, and 3 images"):
            label(*tree(server), "strict=true")
        assert len(server.asked) == 23  # nothing was asked twice
        label(*tree(server), "again=empty")
        assert server.counts()[3] == 2 and len(server.asked) == 24
        label(*tree(server), "again=failed", "dry_run=true")
        assert "1 images of voc" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("limit=0", LabelingError, "limit is 0"),
        ("again=wrong", LabelingError, "again='wrong'"),
        ("caption_len=0", LabelingError, "caption_len is 0"),
        ("labeler.model=null", LabelingError, "labeler.model is not set"),
        ("labeler.key_variable=NOT_THERE", KeyMissing, "NOT_THERE is not set"),
        ("dataset.root=/nowhere", ValueError, "is not a folder"),
    ],
)
def test_wrong_settings(tree, override, error, message):
    with pytest.raises(error, match=message):
        label(*tree(), override)


def test_published_labels_are_not_overwritten(tree, tmp_path):
    (tmp_path / "out").mkdir()
    published = tmp_path / "out" / "voc.json"
    published.write_text('{"2007_000001.jpg": {"caption": "cow"}}')
    with ChatServer() as server, pytest.raises(LabelingError, match="that are not from this log"):
        label(*tree(server))
    assert not server.asked and "cow" in published.read_text()
    assert [path.name for path in published.parent.iterdir()] == ["voc.json"]


def test_a_killed_run_goes_on_and_asks_nothing_twice(tree, tmp_path):
    log = tmp_path / "out" / "voc.answers.jsonl"
    with ChatServer(otherwise=slow(0.1)) as server:
        for enough in (3, 12):
            process = start(*tree(server))
            wait_for(lambda enough=enough: len(server.asked) >= enough, process)
            time.sleep(random.uniform(0, 0.15))
            process.kill()
            process.communicate()
            time.sleep(0.2)  # the server ends what it began
            kept = Answers(log).captions()
            assert sum(server.paid.values()) - len(Answers(log).answers()) <= 2 * WORKERS  # in flight, at each kill
        before = server.counts()
        process = start(*tree(server))
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    captions, _ = read_captions(tmp_path / "out" / "voc.json")
    assert len(captions) == 24 and kept.items() <= captions.items() and len(kept) >= 6
    twice = {number: count for number, count in server.counts().items() if count > 1}
    assert sum(twice.values()) - len(twice) <= 2 * WORKERS
    assert all(server.counts()[int(name[5:11])] == before[int(name[5:11])] for name in kept)
    assert len(Answers(log).answers()) == 24  # each answer once


def test_an_interrupted_run_keeps_what_is_in_flight(tree, tmp_path):
    with ChatServer(otherwise=slow(0.3)) as server:
        process = start(*tree(server))
        wait_for(lambda: len(server.asked) >= 4, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "run the same command again to resume" in err and "Traceback" not in err
    captions, _ = read_captions(tmp_path / "out" / "voc.json")
    assert len(captions) == len(server.asked) < 24 and f"{len(captions)} captions" in out


def test_the_key_is_in_no_file_and_no_output(tree, tmp_path):
    plan = {
        23: [echo_key(400)],
        22: [echo_key(500)] * 2,
        21: [echo_key(200)],
        20: [echo_key(401)],
        19: [echo_escaped_key()],
        18: [echo_escaped_key(whole=False)],
    }
    with ChatServer(plan) as server:
        process = start(*tree(server), OPENAI_LOG="debug", HYDRA_FULL_ERROR="1")
        said = "".join(process.communicate(timeout=60))
        assert process.returncode != 0 and "ServerRefused" in said
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "out" / "voc.answers.jsonl").is_file()
    escaped = "".join(f"\\u{ord(character):04x}" for character in KEY)
    assert KEY not in said and not any(KEY.encode() in content for content in files)
    assert escaped not in said and not any(escaped.encode() in content for content in files)


@pytest.mark.parametrize("key", [KEY, 'sk-"quoted\\and/more"-0123'])
def test_a_key_that_comes_back_escaped_is_in_no_caption(tree, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with ChatServer({23: [echo_escaped_key()], 22: [echo_escaped_key(whole=False)], 21: [echo_key(200)]}) as server:
        label(*tree(server), "limit=3")
    captions, _ = read_captions(tmp_path / "out" / "voc.json")
    assert captions == {"2007_000023.jpg": "cat, [key]", "2007_000021.jpg": "cat, [key]"}
    for path in (tmp_path / "out").iterdir():
        content = path.read_text()
        assert key not in content and json.dumps(key)[1:-1] not in content
        assert "".join(f"u{ord(character):04x}" for character in key[:8]) not in content.replace("\\", "")


def test_what_was_in_flight_when_a_run_was_killed_is_said_comes_last_and_after_the_time_out(tree, tmp_path):
    log, settings = tmp_path / "out" / "voc.answers.jsonl", ["labeler.timeout=3", "labeler.workers=3"]
    with ChatServer(otherwise=slow(0.4)) as server:
        process = start(*tree(server), *settings)
        wait_for(lambda: len(server.asked) >= 3, process)
        process.kill()
        process.communicate()
        in_flight = Answers(log).in_flight()
        assert 1 <= len(in_flight) <= 3 and not set(in_flight) & set(Answers(log).captions())
        killed = time.time()
        assert max(in_flight.values()) <= killed
        server.otherwise, first = caption(), len(server.asked)
        process = start(*tree(server), *settings)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert f"{len(in_flight)} images were being asked about when an earlier run was killed" in out
        numbers = [number for number, _ in server.asked[first:]]
        again = {int(name[5:11]) for name in in_flight}
        assert again <= set(numbers[-len(again) - WORKERS :]) and len(numbers) == len(set(numbers))
        assert time.time() >= max(in_flight.values()) + 3
    assert Answers(log).in_flight() == {} and len(Answers(log).captions()) == 24


def test_labels_made_here_are_read_by_the_captioner(tree, tmp_path):
    with ChatServer() as server:
        label(*tree(server), "limit=2")
    assert json.loads((tmp_path / "out" / "voc.json").read_text()) == {
        "2007_000023.jpg": {"caption": CAPTION},
        "2007_000022.jpg": {"caption": CAPTION},
    }


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail("the command did not ask: " + "".join(process.communicate()))
        time.sleep(0.01)
