"""How a labeller is set: one dataclass behind configs/labeler/*.yaml."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from goca.labeling.errors import KeyMissing, LabelingError
from goca.labeling.pricing import IMAGE_TOKENS

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
NO_KEY = "none"  # what a server that needs no key is sent
# field -> its kind, least and greatest value
RANGES: dict[str, tuple[type, float, float]] = {
    "side": (int, 64, 4096),
    "quality": (int, 20, 95),
    "workers": (int, 1, 64),
    "retries": (int, 0, 20),
    "timeout": (float, 0.1, 3600),
    "first_wait": (float, 0, 60),
    "longest_wait": (float, 0, 3600),
    "patience": (int, 1, 10_000),
    "price_in": (float, 0, 1e6),
    "price_out": (float, 0, 1e6),
}


@dataclass(frozen=True)
class LabelerConfig:
    """The fields of configs/labeler/*.yaml. Raises LabelingError for values outside their range."""

    model: str
    base_url: str | None = None  # of an OpenAI-compatible server, such as http://localhost:8000/v1; None: OpenAI's
    key_variable: str | None = "OPENAI_API_KEY"  # NAME of the environment variable with the key; None: no key needed
    side: int = 1024  # pictures are scaled down to this longer side; smaller ones stay as they are
    quality: int = 90  # of the JPEG
    detail: str | None = "high"  # OpenAI's word for how closely a picture is looked at; None: not said
    instruction: str | None = None  # a text file, with {words}, {caption_len}, {example} where wanted; None: the own
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request (temperature, ...)
    workers: int = 4  # requests at a time
    retries: int = 6  # after 429, 5xx, a time-out or a dropped connection
    timeout: float = 60  # seconds for one reply
    first_wait: float = 1  # seconds before the first retry; doubled for each further one
    longest_wait: float = 120  # seconds; a server that asks for more (Retry-After) counts as unreachable
    patience: int = 20  # failures in a row that end the run
    image_tokens: str | int = "tiles"  # how a picture is priced: a rule of pricing.IMAGE_TOKENS, or a number of tokens
    price_in: float | None = None  # dollars per million tokens; None: not known
    price_out: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise LabelingError("labeler.model is not set; give the server's name of it: labeler.model=gpt-4o")
        for name, (kind, least, most) in RANGES.items():
            if (value := getattr(self, name)) is not None or not name.startswith("price"):
                _check_number(name, value, kind, least, most)
        if (rule := self.image_tokens) not in IMAGE_TOKENS and (isinstance(rule, bool) or not isinstance(rule, int)):
            raise LabelingError(f"labeler.image_tokens is {rule!r}; expected a number, or {' or '.join(IMAGE_TOKENS)}")
        if not isinstance(self.options, Mapping) or {"model", "messages", "stream", "n"} & set(self.options):
            raise LabelingError("labeler.options are further fields of a request; model, messages, stream, n are not")
        if self.instruction is not None and not isinstance(self.instruction, str):
            raise LabelingError(f"labeler.instruction is {self.instruction!r}; expected the path of a text file")
        if self.base_url is not None:
            _check_url(self.base_url)
        if self.key_variable is not None and not VARIABLE.fullmatch(str(self.key_variable)):
            raise LabelingError(  # what was given may be the key itself, so it is not repeated
                "labeler.key_variable is no name of an environment variable; give the NAME, such as OPENAI_API_KEY,"
                " and put the key into that variable"
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> LabelerConfig:
        """From a mapping. Raises LabelingError for fields that are unknown."""
        known = [each.name for each in dataclasses.fields(cls)]
        if unknown := [str(key) for key in fields if key not in known]:
            raise LabelingError(f"labeler has no field {', '.join(unknown)}; fields: {', '.join(known)}")
        return cls(**{"model": None, **{str(key): value for key, value in fields.items()}})

    def key(self) -> str:
        """The key, from the environment alone. Raises KeyMissing."""
        if self.key_variable is None:
            return NO_KEY
        if not (key := os.environ.get(self.key_variable, "").strip()):
            raise KeyMissing(
                f"the environment variable {self.key_variable} is not set; export the key in it,"
                " or set labeler.key_variable=null for a server that needs none"
            )
        if not key.isascii() or not key.isprintable():
            raise KeyMissing(f"{self.key_variable} holds characters that no key has; was it copied whole?")
        return key

    def asked(self) -> dict[str, Any]:
        """What answers depend on, for the log; where the server stands is not of it."""
        return {
            "model": self.model,
            "side": self.side,
            "quality": self.quality,
            "detail": self.detail,
            "options": dict(self.options),
        }


def _check_number(name: str, value: Any, kind: type, least: float, most: float) -> None:
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
        raise LabelingError(f"labeler.{name} is {value!r}; expected a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise LabelingError(f"labeler.{name} is {value!r}; it must lie between {least:g} and {most:g}")


def _check_url(url: Any) -> None:
    try:
        parts = urlsplit(str(url))
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise LabelingError("labeler.base_url is no address; expected one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise LabelingError("labeler.base_url holds a name, password or query; keys come from labeler.key_variable")
