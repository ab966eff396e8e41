"""Read a caption from a server's reply, or the reason why it holds none."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from goca.files.bounded_json import JSONUnreadable, parse_json
from goca.labeling.errors import NoCaption
from goca.prompts import parse_brackets

ITEM_WORDS = 6  # an item with more words is a sentence
KEPT = 2000  # characters of a reply that are logged

REFUSAL = re.compile(
    r"\W*(i['’]?m (very )?sorry|sorry\b|i (can ?not|can['’]?t|do not|don['’]?t|am not able|am unable|won['’]?t)\b"
    r"|i['’]?m (not able|unable)|unfortunately\b|as an ai\b|i apologi[sz]e)",
    re.IGNORECASE,
)
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
TITLE = re.compile(r"^(caption|answer|list|output)\s*:\s*", re.IGNORECASE)
BULLET = re.compile(r"^\s*([-*•]|\d+[.)])\s+")


@dataclass(frozen=True)
class Reply:
    """What is read of a chat completion: text, why it ended, and tokens (in, out) if the server counted them."""

    text: str
    finish: str | None
    refusal: str | None
    model: str | None
    tokens: tuple[int, int] | None


def read_reply(body: bytes, without_key: Callable[[Any], Any] = lambda value: value) -> Reply:
    """Read the first choice of a chat completion. Raises NoCaption("malformed") for anything else.

    without_key  removes the key from texts
    """
    try:
        reply = without_key(parse_json(body))
    except JSONUnreadable as error:
        found = shown(without_key(body.decode("utf-8", "replace")))
        raise NoCaption("malformed", f"the reply is not JSON ({error}): {found}") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise NoCaption("malformed", f"the reply has no choices[0].message: {shown(json.dumps(reply))}")
    return Reply(
        text=_text(message.get("content")),
        finish=_optional(choice.get("finish_reason")),
        refusal=_optional(message.get("refusal")),
        model=_optional(reply.get("model")),
        tokens=_tokens(reply.get("usage")),
    )


def read_caption(reply: Reply, most_words: int) -> str:
    """Extract the caption from a reply. Raises NoCaption with the reason if it holds none.

    most_words  longer captions are rejected; models do not count well, so allow more than requested
    """
    if reply.refusal or reply.finish == "content_filter":
        raise NoCaption("refused", shown(reply.refusal or "the server's content filter"))
    if not (caption := clean(reply.text)):
        raise NoCaption("cut off" if reply.finish == "length" else "empty", "the reply has no text")
    if REFUSAL.match(caption):
        raise NoCaption("refused", shown(caption))
    if reply.finish == "length":
        raise NoCaption("cut off", f"the model ran into its token limit: {shown(caption)}")
    if (words := len(caption.split())) > most_words:
        raise NoCaption("oversized", f"{words} words, but at most {most_words} are accepted: {shown(caption)}")
    items = [item for group in parse_brackets(caption) for item in group]
    if not any(character.isalpha() for item in items for character in item):
        raise NoCaption("malformed", f"the caption has no words: {shown(caption)}")
    if longest := next((item for item in items if len(item.split()) > ITEM_WORDS), None):
        raise NoCaption("malformed", f"{shown(longest)!r} is a sentence, not a noun")
    return caption


def clean(text: str) -> str:
    """Return one line without reasoning, code fences, quotes, title and bullets; control characters become spaces."""
    text = THOUGHT.sub("", text).strip()
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("```")]
    if len(lines) > 1 and TITLE.fullmatch(lines[0].strip() + " "):
        lines = lines[1:]
    if lines and all(BULLET.match(line) for line in lines):
        lines = [", ".join(BULLET.sub("", line).strip().rstrip(",;.") for line in lines)]
    line = " ".join(" ".join(lines).encode("utf-8", "replace").decode().split())
    line = "".join(" " if unicodedata.category(character) == "Cc" else character for character in line)
    line = TITLE.sub("", line.strip().strip('`"“”').strip())
    return " ".join(line.strip('`"“”').split())


def shown(text: str, length: int = 120) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _text(content: Any) -> str:
    """Return a message's text; some servers send it as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise NoCaption("malformed", f"the reply's content is not text: {shown(repr(content))}")
    return content or ""


def _optional(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _tokens(usage: Any) -> tuple[int, int] | None:
    usage = usage if isinstance(usage, dict) else {}
    given, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (given, made) if _count(given) and _count(made) else None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
