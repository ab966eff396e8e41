"""The labeller's log: what is left to ask, damage that loses one line at most, and one writer at a time."""

import resource

import pytest
from goca.labeling import (
    AnswerLog,
    Answers,
    LabelingError,
    LogMismatch,
    check_own,
    write_labels,
)

ASKED = {"dataset": "voc", "instruction": "Name it.", "model": "see-1"}


def answered(name, caption="cat"):
    return {"image": name, "by": "0", "caption": caption, "tokens": [300, 10]}


def failed(name, kind="refused"):
    return {"image": name, "by": "0", "failed": kind, "reason": "no"}


def test_what_is_left_to_ask(tmp_path):
    with AnswerLog(tmp_path / "log.jsonl", ASKED) as log:
        for record in (failed("b"), failed("c", "empty"), failed("d", "unreachable"), answered("a"), failed("b")):
            log.append(record)
        names = ["a", "b", "c", "d", "e"]
        assert log.to_ask(names) == ["e", "d"]
        assert log.to_ask(names, "failed") == ["c", "d", "b"] and log.to_ask(names, "empty") == ["c"]
        with pytest.raises(LabelingError, match="expected null, failed, or a kind of failure: unreachable"):
            log.to_ask(names, "wrong")
        log.append(answered("b", "dog"))
        log.append(failed("b"))  # a later failure does not take a caption away
        assert log.captions(names) == {"a": "cat", "b": "dog"} and "b" not in log.failures()


def test_a_log_cut_anywhere_loses_one_line_at_most(tmp_path):
    with AnswerLog(tmp_path / "log.jsonl", ASKED) as log:
        for name in "abc":
            log.append(answered(name))
    whole = (tmp_path / "log.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[0], len(whole) + 1, 3):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        with AnswerLog(tmp_path / "cut.jsonl", ASKED) as log:
            assert len(log.answers()) == sum(end <= cut for end in ends) - 1 and log.damaged == 0
            log.append(answered("z"))
        assert Answers(tmp_path / "cut.jsonl").captions()["z"] == "cat"


def test_a_damaged_line_is_said(tmp_path):
    with AnswerLog(tmp_path / "log.jsonl", ASKED) as log:
        log.append(answered("a"))
        log.append(answered("b"))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text().replace('"a"', '"x"'))
    found = Answers(path)
    assert found.damaged == 1 and list(found.captions()) == ["b"]


def test_one_writer_at_a_time(tmp_path):
    with AnswerLog(tmp_path / "log.jsonl", ASKED), pytest.raises(LabelingError, match="another process is writing"):
        AnswerLog(tmp_path / "log.jsonl", ASKED)


def test_a_log_of_other_answers_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    with AnswerLog(path, ASKED) as log:
        log.append(answered("a"))
    with pytest.raises(LogMismatch, match='model: "see-1" there, "see-2" now') as caught:
        AnswerLog(path, ASKED | {"model": "see-2"})
    assert "mix=true" in str(caught.value)
    with AnswerLog(path, ASKED | {"model": "see-2"}, mix=True) as log:
        assert "a" in log.captions()
    with AnswerLog(path, ASKED | {"model": "see-2"}) as log:  # it goes on as it was last asked
        assert len([record for record in log.records if "setting" in record]) == 2
    with pytest.raises(LogMismatch, match="belongs to another data set"):
        AnswerLog(path, ASKED | {"dataset": "context"}, mix=True)


def test_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswerLog(tmp_path / "log.jsonl", ASKED) as log:
        log.append(answered("a"))
        before = (tmp_path / "log.jsonl").read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
            with pytest.raises(LabelingError, match="free some space and run again"):
                log.append(answered("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "log.jsonl").read_bytes() == before
        log.append(answered("b"))
        assert list(log.captions()) == ["a", "b"]


def test_labels_that_came_from_elsewhere_are_not_overwritten(tmp_path):
    path = tmp_path / "voc.json"
    with AnswerLog(tmp_path / "log.jsonl", ASKED) as log:
        log.append(answered("a.jpg"))
        check_own(path, log)
        assert write_labels(path, log) == 1
        log.append(answered("b.jpg"))
        check_own(path, log)
        path.write_text('{"a.jpg": {"caption": "written by hand"}}')
        with pytest.raises(LabelingError, match="labels=gpt_output/NAME"):
            check_own(path, log)
