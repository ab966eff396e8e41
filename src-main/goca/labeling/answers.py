"""The log of answers: one checksummed line per answer, written before the next image is requested.

    {"setting": id, "dataset": ..., "instruction": ..., "model": ..., ...}     the settings of the answers that follow
    {"image": name, "by": id, "caption": ..., "reply": ..., "tokens": [in, out], ...}
    {"image": name, "by": id, "failed": kind, "reason": ..., ...}
    {"intent": name, "at": seconds}     a request is about to be made; {"intent": name, "ended": true}: it is over

Lines are only appended; a line that a killed process left incomplete is dropped. The labels file is made from the log.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from goca.files.atomic import sweep, write_text
from goca.files.log import Record, append_line, open_log, sealed, sealed_lines
from goca.labeling.errors import KINDS, LabelingError, LogMismatch
from goca.prompts import read_captions


class Answers:
    """The content of a log, read without changing it. A missing file counts as an empty log.

    Raises LabelingError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.damaged = 0  # damaged lines; their images count as not requested
        self._read()

    def answers(self) -> list[Record]:
        """All answers in order; an image may occur more than once."""
        return [record for record in list(self.records) if "image" in record]

    def latest(self) -> dict[str, Record]:
        """The state of each image: its last caption, or else its last failure."""
        known: dict[str, Record] = {}
        for record in self.answers():
            if "caption" in record or "caption" not in known.get(record["image"], {}):
                known[record["image"]] = record
        return known

    def captions(self, order: Iterable[str] = ()) -> dict[str, str]:
        """The captions: first those of `order`, then the others."""
        known = {name: record["caption"] for name, record in self.latest().items() if "caption" in record}
        return {name: known[name] for name in [*(name for name in order if name in known), *known]}

    def failures(self) -> dict[str, Record]:
        """The images that were requested and have no caption."""
        return {name: record for name, record in self.latest().items() if "caption" not in record}

    def in_flight(self) -> dict[str, float]:
        """Images whose request was in flight when a process was killed -> its time (seconds since 1970)."""
        found: dict[str, float] = {}
        for record in list(self.records):
            if "at" in record and "intent" in record:
                found[record["intent"]] = float(record["at"])
            else:
                found.pop(record.get("image") or record.get("intent") or "", None)
        return found

    def to_ask(self, names: Iterable[str], again: str | None = None) -> list[str]:
        """The images of `names` to request now: new ones first, then those requested longest ago, and last those whose
        request was in flight when a process was killed.

        again  None: images without an answer. "failed", or one of KINDS: only images whose answer holds no caption, for
               any or for that reason. Raises LabelingError for any other word.
        """
        if again is not None and again != "failed" and again not in KINDS:
            raise LabelingError(f"again={again!r}; expected null, failed, or a kind of failure: {', '.join(KINDS)}")
        last = {record["image"]: place for place, record in enumerate(self.answers())}
        if again is None:
            known = self.latest()
            left = [name for name in names if not _answered(known.get(name))]
        else:
            failures = self.failures()
            left = [name for name in names if name in failures and again in ("failed", failures[name]["failed"])]
        in_flight = self.in_flight()
        return sorted(left, key=lambda name: (name in in_flight, last.get(name, -1)))

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            self.records = list(sealed_lines(self.path))
            self.damaged = self.path.read_bytes().count(b"\n") - len(self.records)
        except OSError as error:
            raise LabelingError(f"the log {self.path} cannot be read: {error}") from None


class AnswerLog(Answers):
    """A log open for appending; threads may share it, a second process is refused.

    path   the log file, created if missing
    asked  the settings that answers depend on: "dataset", "instruction", "model", ...; a log of another data set is
           refused, and one with other settings unless `mix` is true
    Raises LogMismatch, or LabelingError where it cannot be written.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], mix: bool = False) -> None:
        self._lock = threading.Lock()
        asked = json.loads(json.dumps(asked))
        self.setting = f"{zlib.crc32(json.dumps(asked, sort_keys=True).encode()):08x}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            self._file = open_log(path)
        except BlockingIOError:
            raise LabelingError(f"another process is writing to {path}; wait for it") from None
        except OSError as error:
            raise LabelingError(f"the log {path} cannot be opened: {error}") from None
        try:
            super().__init__(path)
            self._check(dict(asked), mix)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Append one line and flush it to disk. Raises LabelingError if that fails; the log is then unchanged."""
        with self._lock:
            try:
                append_line(self._file, sealed(record))
            except OSError as error:
                raise LabelingError(
                    f"the log {self.path} cannot be written ({error}); free some space and run again:"
                    " existing answers are kept"
                ) from error
            self.records.append(record)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, asked: dict[str, Any], mix: bool) -> None:
        earlier = [record for record in self.records if "setting" in record]
        answered = [record for record in self.records if "image" in record]
        if answered and not earlier:
            raise LogMismatch(f"{self.path} does not hold the settings of its answers; choose another labels=FILE")
        if earlier and (old := earlier[-1])["setting"] != self.setting:
            self._refuse({key: value for key, value in old.items() if key != "setting"}, asked, mix)
        if not earlier or earlier[-1]["setting"] != self.setting:
            self.append({"setting": self.setting, **asked})

    def _refuse(self, old: dict[str, Any], new: dict[str, Any], mix: bool) -> None:
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        lines = "\n".join(f"    {key}: {_short(old.get(key))} there, {_short(new.get(key))} now" for key in changed)
        if "dataset" in changed:
            raise LogMismatch(f"{self.path} belongs to another data set:\n{lines}\nChoose another labels=FILE.")
        if not mix:
            raise LogMismatch(
                f"{self.path} holds answers to other settings:\n{lines}\n"
                "Choose another labels=FILE, use the old settings, or set mix=true to add to them."
            )


def write_labels(path: Path, log: Answers, order: Iterable[str] = ()) -> int:
    """Write the labels file in the published format from the log; return its number of captions."""
    captions = log.captions(order)
    labels = {name: {"caption": caption} for name, caption in captions.items()}
    write_text(path, json.dumps(labels, indent=1) + "\n")
    return len(labels)


def check_own(path: Path, log: Answers) -> None:
    """Raise LabelingError if the labels file holds captions that are not from this log, such as published labels."""
    if not path.exists():
        return
    captions, refused = read_captions(path)
    known = {(record["image"], record.get("caption")) for record in log.answers()}
    if foreign := [*refused, *(name for name, caption in captions.items() if (name, caption) not in known)]:
        raise LabelingError(
            f"{path} holds labels that are not from this log ({len(foreign)}, such as {foreign[0]!r}); they would be"
            " lost. Give another file: labels=gpt_output/NAME.json"
        )


def _answered(record: Record | None) -> bool:
    return record is not None and ("caption" in record or KINDS.get(record["failed"], True))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:30]}...{text[-20:]} ({zlib.crc32(text.encode()):08x})"
