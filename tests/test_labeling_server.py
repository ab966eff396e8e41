"""The labeller against a real server that misbehaves on purpose."""

import email.utils
import json
import os
import time
from types import SimpleNamespace

import pytest
from chat_server import (
    CAPTION,
    ChatServer,
    caption,
    completion,
    drip,
    drop,
    echo_key,
    picture,
    raw,
    slow,
    status,
    torn,
)
from goca.datasets import SampleError
from goca.labeling import AnswerLog, Labeler, LabelerConfig, LabelingError, ServerRefused, Vocabulary, write_labels
from goca.labeling.server import retry_after

KEY = "sk-test-0123456789abcdef"


class Grey:
    """A data set of grey pictures, told apart by their brightness."""

    name, class_names = "grey", [[], ["cat"], ["person"]]

    def __init__(self, count, broken=()):
        self.ids = [str(number) for number in range(count)]
        self.broken = broken

    def sample(self, image_id):
        if int(image_id) in self.broken:
            raise SampleError("image cannot be read")
        return SimpleNamespace(name=f"{image_id}.png", image=picture(int(image_id)))


@pytest.fixture
def job(tmp_path):
    """run(plan, ...) asks about `count` pictures; returns server, log records by picture, and the labeler."""

    def run(plan=None, count=1, again=None, otherwise=None, dataset=None, raises=None, **settings):
        with ChatServer(plan, otherwise) as server:
            settings = {"retries": 3, "timeout": 5, "first_wait": 0.01, "longest_wait": 5, "patience": 100} | settings
            config = LabelerConfig.of({"model": "see-1", "base_url": server.url, **settings})
            labeler = Labeler(config, dataset or Grey(count), Vocabulary(Grey.class_names))
            with AnswerLog(tmp_path / "log.jsonl", labeler.asked()) as log:
                names = log.to_ask(labeler.names, again)
                if raises:
                    with pytest.raises(raises) as caught:
                        labeler.run(names, log, KEY)
                    return server, log.latest(), str(caught.value)
                labeler.run(names, log, KEY)
                write_labels(tmp_path / "labels.json", log, labeler.names)
                return server, log.latest(), labeler

    return run


def test_the_request_and_its_answer(job, tmp_path):
    server, known, labeler = job(options={"temperature": 0, "top_k": 1}, side=64)
    request = server.requests[0]
    assert request["model"] == "see-1" and request["temperature"] == 0 and request["top_k"] == 1
    assert request["messages"][0]["content"][0]["text"] == labeler.instruction
    assert request["messages"][0]["content"][1]["image_url"]["detail"] == "high"
    assert json.loads((tmp_path / "labels.json").read_text()) == {"0.png": {"caption": CAPTION}}
    assert tuple(known["0.png"]["tokens"]) == (300, 12)
    assert known["0.png"]["served"] == "see-1-mini"


@pytest.mark.parametrize(
    "trouble",
    [
        status(429),
        status(500),
        status(503),
        status(408),
        drop,
        torn,
        slow(0.6),
        drip(1.2),
    ],
    ids=["429", "500", "503", "408", "drop", "torn", "slow", "drip"],
)
def test_passing_trouble_is_tried_again(job, trouble):
    server, known, _ = job({0: [trouble]}, timeout=0.3)
    assert known["0.png"]["caption"] == CAPTION and known["0.png"]["tries"] == 2
    assert server.counts() == {0: 2}


@pytest.mark.parametrize("trouble", [status(500), drop, slow(0.4)], ids=["500", "drop", "slow"])
def test_lasting_trouble_is_recorded_and_asked_by_the_next_run(job, trouble):
    server, known, _ = job({0: [trouble] * 9}, count=2, retries=1, timeout=0.2)
    assert known["0.png"]["failed"] == "unreachable" and "after 2 tries" in known["0.png"]["reason"]
    assert known["1.png"]["caption"] == CAPTION
    server, known, _ = job(count=2)
    assert known["0.png"]["caption"] == CAPTION and server.counts() == {0: 1}


def test_nobody_there(job):
    _, known, _ = job(base_url="http://127.0.0.1:9/v1", retries=1)
    assert known["0.png"]["failed"] == "unreachable"


@pytest.mark.parametrize("seconds", [0.4, "date"])
def test_retry_after_is_honoured_by_all(job, seconds):
    asked = email.utils.formatdate(time.time() + 2, usegmt=True) if seconds == "date" else str(seconds)
    wait = 0.9 if seconds == "date" else 0.4  # a date is cut to whole seconds
    plan = {0: [status(429, headers={"Retry-After": asked})]}
    server, known, _ = job(plan, count=8, workers=2, otherwise=slow(0.02))
    moments = [moment for number, moment in server.asked if number == 0]
    assert moments[1] - moments[0] >= wait
    quiet = [moment for _, moment in server.asked if moments[0] + 0.1 < moment < moments[0] + wait]
    assert not quiet and all("caption" in record for record in known.values())


def test_a_wait_that_is_too_long_is_not_waited_for(job):
    start = time.monotonic()
    _, known, _ = job({0: [status(429, headers={"Retry-After": "3600"})]})
    assert time.monotonic() - start < 3
    assert known["0.png"]["failed"] == "unreachable" and "3600 s, longer than labeler.longest_wait=5" in str(known)


@pytest.mark.parametrize(
    "headers, expected",
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_retry_after(headers, expected):
    assert retry_after(headers) == expected


BAD = {
    "empty": (caption(""), "empty"),
    "nothing": (caption(None), "empty"),
    "blank": (caption(" \n "), "empty"),
    "refusal": (caption(None, refusal="I will not."), "refused"),
    "filter": (caption("cat", finish="content_filter"), "refused"),
    "sorry": (caption("I'm sorry, but I can't help with that."), "refused"),
    "stranger": (caption("I don’t know who this is. \n\n(person, clothes)"), "refused"),
    "no JSON": (raw(b"<html>busy</html>"), "malformed"),
    "half JSON": (raw(b'{"choices": [{"mess'), "malformed"),
    "other JSON": (raw(b"[1, 2]"), "malformed"),
    "no choices": (raw(b'{"choices": []}'), "malformed"),
    "no text": (raw(json.dumps(completion(7)).encode()), "malformed"),
    "not UTF-8": (raw(b'{"choices": "\xff\xfe"}'), "malformed"),
    "deep": (raw(b"[" * 100_000), "malformed"),
    "sentence": (caption("The picture shows a cat that sits on a mat."), "malformed"),
    "marks": (caption("(), --, ..."), "malformed"),
    "long": (caption(", ".join(f"thing{i}" for i in range(300))), "oversized"),
    "flood": (raw(json.dumps(completion("x" * (2 << 20))).encode()), "oversized"),
    "cut off": (caption("cat, dog, sk", finish="length"), "cut off"),
    "rejected": (status(400, "cannot decode image"), "rejected"),
}


def test_bad_replies_are_recorded_and_asked_again_alone(job, tmp_path):
    plan = {number: [act] for number, (act, _) in enumerate(BAD.values())}
    count = len(BAD) + 2
    server, known, _ = job(plan, count)
    found = {name: known[f"{number}.png"].get("failed") for number, name in enumerate(BAD)}
    assert found == {name: kind for name, (_, kind) in BAD.items()}
    assert all(record["reason"] for record in known.values() if "failed" in record)
    assert set(server.counts().values()) == {1}  # what was answered is not asked twice
    assert list(json.loads((tmp_path / "labels.json").read_text())) == [f"{count - 2}.png", f"{count - 1}.png"]
    assert job(count=count)[0].asked == []  # the next run leaves them alone
    server, known, _ = job(count=count, again="refused")
    assert set(server.counts()) == {i for i, (_, kind) in enumerate(BAD.values()) if kind == "refused"}
    server, known, _ = job(count=count, again="failed")
    assert len(server.asked) == sum(kind != "refused" for _, kind in BAD.values())
    assert all("caption" in record for record in known.values())
    assert list(json.loads((tmp_path / "labels.json").read_text())) == [f"{i}.png" for i in range(count)]


@pytest.mark.parametrize(
    "trouble",
    [
        status(401, "wrong key"),
        status(403),
        status(404, "no such model"),
        status(429, "quota", error={"code": "insufficient_quota"}),
    ],
    ids=["401", "403", "404", "quota"],
)
def test_what_waiting_does_not_cure_ends_the_run(job, trouble):
    server, known, said = job(otherwise=trouble, count=30, workers=2, raises=ServerRefused)
    assert len(server.asked) <= 4 and not known
    assert "labeler.model=see-1" in said and "OPENAI_API_KEY" in said


def test_a_row_of_failures_ends_the_run_and_the_next_goes_on_behind_them(job):
    server, _, said = job(otherwise=caption(""), count=40, workers=2, patience=5, raises=ServerRefused)
    assert 5 <= len(server.asked) <= 8 and "5 failures in a row" in said and "empty" in said
    again, _, _ = job(otherwise=caption(""), count=40, workers=2, patience=5, raises=ServerRefused)
    assert not set(again.counts()) & set(server.counts())


def test_unreachable_pictures_do_not_bar_the_way(job):
    plan = {0: [status(500)] * 9, 1: [status(500)] * 9}
    settings = {"count": 4, "workers": 1, "retries": 0, "patience": 2}
    server, _, _ = job(plan, raises=ServerRefused, **settings)
    assert {0, 1} <= set(server.counts())
    server, known, _ = job(plan, **settings, raises=ServerRefused)
    assert {"2.png", "3.png"} <= {name for name, record in known.items() if "caption" in record}


def test_each_answer_is_on_disk_before_the_next_picture_is_asked_about(job, tmp_path, monkeypatch):
    forced, kept = [], []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (forced.append(file), fsync(file)))

    def look(handler):
        kept.append((tmp_path / "log.jsonl").read_text().count('"caption"'))
        caption()(handler)

    job(count=6, workers=1, otherwise=look)
    assert kept == [0, 1, 2, 3, 4, 5]
    assert len(forced) == 14  # the setting's line, one per request and one per answer, the labels file


def test_no_more_requests_at_a_time_than_workers(job):
    server, known, _ = job(count=12, workers=3, otherwise=slow(0.05))
    assert 2 <= server.most_at_a_time <= 3 and len(known) == 12


def test_pictures_that_cannot_be_read_are_skipped(job):
    _, known, labeler = job(dataset=Grey(3, broken=(1,)))
    assert set(known) == {"0.png", "2.png"} and labeler.skipped == {"1": "image cannot be read"}


def test_two_pictures_of_one_name():
    dataset = Grey(2)
    dataset.sample = lambda image_id: SimpleNamespace(name="same.png")
    with pytest.raises(LabelingError, match="same file name 'same"):
        Labeler(LabelerConfig("see-1"), dataset, Vocabulary(Grey.class_names))


def test_the_key_is_kept_nowhere(job, tmp_path):
    plan = {0: [echo_key(400)], 1: [echo_key(500)] * 2, 2: [echo_key(200)]}
    _, known, _ = job(plan, count=3, retries=1)
    assert known["0.png"]["failed"] == "rejected" and "[key]" in known["2.png"]["reply"]
    _, _, said = job(otherwise=echo_key(401), count=9, raises=ServerRefused)
    kept = said + "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in kept and "[key]" in kept
