"""The labeller's settings: the dataclass behind configs/labeler/*.yaml."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from goca.labeling.errors import KeyMissing, LabelingError
from goca.labeling.pricing import IMAGE_TOKENS
from goca.schema import Count, OneOf, Place, Range, Text, check_fields, check_names, is_number, shown

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
LIKE_A_KEY = re.compile(r"(?<![A-Za-z0-9])(sk|pk|rk|hf|gsk|xai|ghp|gho)[-_][A-Za-z0-9_-]{16,}|AIza[A-Za-z0-9_-]{30,}")
SECRET = 8  # characters; shorter values are placeholders for local servers, such as "EMPTY"
MOST_SETTINGS = 20_000
AMONG_SETTINGS = (  # never followed by the key itself
    "was found in labeler.model, labeler.detail or labeler.options, which are written into the log; remove it there."
    " Keys belong in the environment variable that labeler.key_variable names, and nowhere else"
)
NO_KEY = "none"  # sent to a server that needs no key
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


ImageTokens = Annotated[str, OneOf(IMAGE_TOKENS)] | Annotated[int, Range(0)]


@dataclass(frozen=True)
class LabelerConfig:
    """The fields of configs/labeler/*.yaml. Raises LabelingError for values outside their range."""

    model: Text
    base_url: Any = None  # of an OpenAI-compatible server, such as http://localhost:8000/v1; None: OpenAI's
    key_variable: Any = "OPENAI_API_KEY"  # NAME of the environment variable with the key; None: no key needed
    side: int = 1024  # images are scaled down to this longer side; smaller ones stay as they are
    quality: int = 90  # of the JPEG
    detail: str | None = "high"  # OpenAI's setting of image detail; None: not sent
    instruction: str | None = None  # a text file, may hold {words}, {caption_len}, {example}; None: the packaged one
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request (temperature, ...)
    workers: int = 4  # parallel requests
    retries: int = 6  # after 429, 5xx, a time-out or a dropped connection
    timeout: float = 60  # seconds for one reply
    first_wait: float = 1  # seconds before the first retry; doubled for each further one
    longest_wait: float = 120  # seconds; a server that asks for a longer wait (Retry-After) counts as unreachable
    patience: int = 20  # failures in a row that end the run
    image_tokens: ImageTokens = "tiles"  # tokens per image: a rule of pricing.IMAGE_TOKENS, or a number
    price_in: float | None = None  # dollars per million tokens; None: unknown
    price_out: float | None = None

    def __post_init__(self) -> None:
        if self.model in (None, ""):
            raise LabelingError("labeler.model is not set; give its name on the server: labeler.model=gpt-4o")
        for name, (kind, least, most) in RANGES.items():
            if (value := getattr(self, name)) is not None or not name.startswith("price"):
                _check_number(name, value, kind, least, most)
        if not isinstance(self.image_tokens, int) and self.image_tokens not in (*IMAGE_TOKENS,):
            found = shown(self.image_tokens)
            raise LabelingError(f"labeler.image_tokens is {found}; expected a number, or {' or '.join(IMAGE_TOKENS)}")
        if not isinstance(self.options, Mapping) or {"model", "messages", "stream", "n"} & set(self.options):
            raise LabelingError("labeler.options are further fields of a request; model, messages, stream, n are not")
        if self.instruction is not None and not isinstance(self.instruction, str):
            found = shown(self.instruction)
            raise LabelingError(f"labeler.instruction is {found}; expected the path of a text file")
        check_fields(self, LabelingError, "labeler")
        self._check_stored()
        if self.base_url is not None:
            _check_url(self.base_url)
        name = self.key_variable
        if name is not None and not (isinstance(name, str) and VARIABLE.fullmatch(name)):
            raise LabelingError(  # the value may be the key itself, so it is not repeated
                "labeler.key_variable is not the name of an environment variable; give a NAME such as OPENAI_API_KEY,"
                " and put the key into that variable"
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> LabelerConfig:
        """Make the settings from a mapping. Raises LabelingError for unknown fields."""
        check_names(cls, fields, LabelingError, "labeler")
        return cls(**{"model": None, **fields})

    def key(self) -> str:
        """Read the key from the environment. Raises KeyMissing."""
        if self.key_variable is None:
            return NO_KEY
        if not (key := os.environ.get(self.key_variable, "").strip()):
            raise KeyMissing(
                f"the environment variable {self.key_variable} is not set; export the key,"
                " or set labeler.key_variable=null for a server that needs none"
            )
        if not key.isascii() or not key.isprintable():
            raise KeyMissing(f"{self.key_variable} holds characters that keys do not have; was it copied correctly?")
        if len(key) >= SECRET and json.dumps(key)[1:-1] in json.dumps(self.asked()):
            raise LabelingError(f"the key of {self.key_variable} {AMONG_SETTINGS}")
        return key

    def _check_stored(self) -> None:
        """Check that the settings for the log hold no key and can be written."""
        try:
            text = json.dumps(self.asked(), allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            raise LabelingError("labeler.options cannot be sent as JSON; expected plain texts and numbers") from None
        if len(text) > MOST_SETTINGS:
            raise LabelingError(f"labeler.model, detail and options are longer than {MOST_SETTINGS} characters")
        if LIKE_A_KEY.search(text):
            raise LabelingError(f"what looks like a key {AMONG_SETTINGS}")

    def asked(self) -> dict[str, Any]:
        """The settings that answers depend on, for the log; the server's address is not one of them."""
        return {
            "model": self.model,
            "side": self.side,
            "quality": self.quality,
            "detail": self.detail,
            "options": dict(self.options),
        }


@dataclass(frozen=True, kw_only=True)
class LabelingSettings:
    """The keys of configs/labeling.yaml, where each is explained."""

    labels: Place | None = None
    dry_run: bool = False
    again: Text | None = None
    caption_len: int | None = None
    limit: Count | None = None
    mix: bool = False
    strict: bool = False


def _check_number(name: str, value: Any, kind: type, least: float, most: float) -> None:
    allowed = int if kind is int else (int, float)
    if not is_number(value) or not isinstance(value, allowed):
        raise LabelingError(f"labeler.{name} is {shown(value)}; expected a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise LabelingError(f"labeler.{name} is {shown(value)}; expected a number from {least:g} to {most:g}")


def _check_url(url: Any) -> None:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise LabelingError("labeler.base_url is not an address; expected one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise LabelingError("labeler.base_url holds a name, password or query; keys come from labeler.key_variable")
