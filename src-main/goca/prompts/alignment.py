"""Character offsets of tokens, for tokenizers that return none.

Each blank-separated word is tokenised alone; if the same ids result, its pieces belong to that word. Inside a word (or
the whole text, if the words' ids do not add up) pieces are matched along its bytes. Unknown pieces share the bytes that
their neighbours leave.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from .grammar import CaptionError

Span = tuple[int, int]


class AlignmentError(CaptionError):
    """Pieces could not be found in the text that they were made from."""


def piece_spans(text: str, tokenizer: Any, family: str, ids: Sequence[int]) -> list[Span]:
    """Return [start, end) in `text` for each of `ids`, which may be truncated; (0, 0) for added tokens.

    family  "clip" (byte-level BPE), "t5" (sentencepiece) or "bert" (word pieces): the spelling of pieces
    Raises AlignmentError if no known normalisation leads from the text to the pieces.
    """
    content, added = _ids(tokenizer, text), _ids(tokenizer, "", add_special_tokens=True)
    first = _first_content(ids, content, added)
    pieces = _PIECES[family](tokenizer, content)
    spans: list[Span] = []
    for start, end, count in _words(text, tokenizer, content):
        found = lay(pieces[len(spans) : len(spans) + count], text[start:end])
        spans += [(start + left, start + right) for left, right in found]
    kept = len(ids) - len(added)
    return [(0, 0)] * first + spans[:kept] + [(0, 0)] * (len(added) - first)


def _ids(tokenizer: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def _first_content(ids: Sequence[int], content: list[int], added: list[int]) -> int:
    """The number of added tokens before the content."""
    count = len(ids) - len(added)
    for first in range(len(added) + 1):
        if [*added[:first], *content[:count], *added[first:]] == list(ids):
            return first
    raise AlignmentError(f"expected {added} around the ids {content[:count]}; found {list(ids)}")


def _words(text: str, tokenizer: Any, content: list[int]) -> list[tuple[int, int, int]]:
    """Return (start, end, number of pieces) per blank-separated word, or for the whole text if words do not add up."""
    words = [(word.start(), word.end(), _ids(tokenizer, word[0])) for word in re.finditer(r"\S+", text)]
    if [piece for *_, pieces in words for piece in pieces] == content:
        return [(start, end, len(pieces)) for start, end, pieces in words]
    return [(0, len(text), len(content))]


# --- pieces as bytes; None is an unknown piece --------------------------------------------------------------------


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, as byte-level BPE vocabularies spell them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


def _byte_level(tokenizer: Any, ids: list[int]) -> list[bytes | None]:
    alphabet, unknown = _byte_alphabet(), getattr(tokenizer, "unk_token_id", None)
    texts = [text.removesuffix("</w>") for text in tokenizer.convert_ids_to_tokens(ids)]
    return [None if i == unknown else bytes(alphabet[c] for c in text) for i, text in zip(ids, texts)]


def _marked(mark: str) -> Callable[[Any, list[int]], list[bytes | None]]:
    def pieces(tokenizer: Any, ids: list[int]) -> list[bytes | None]:
        unknown = getattr(tokenizer, "unk_token_id", None)
        texts = tokenizer.convert_ids_to_tokens(ids)
        return [None if i == unknown else text.replace(mark, "").encode() for i, text in zip(ids, texts)]

    return pieces


_PIECES: dict[str, Callable[[Any, list[int]], list[bytes | None]]] = {
    "clip": _byte_level,
    "t5": _marked("▁"),
    "bert": _marked("##"),
}


# --- matching pieces along a text --------------------------------------------------------------------------------


def _bare(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


# how tokenizers normalise a text, mildest first
_NORMALISATIONS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: unicodedata.normalize("NFC", text).lower(),
    lambda text: unicodedata.normalize("NFKC", text),
    lambda text: unicodedata.normalize("NFKC", text).lower(),
    _bare,
)


def lay(pieces: Sequence[bytes | None], text: str) -> list[Span]:
    """Return the spans of consecutive pieces that make up `text` without its blanks. Raises AlignmentError."""
    for normalise in _NORMALISATIONS:
        data, sources = _with_sources(text, normalise)
        if (found := _glob(pieces, data)) is not None:
            return [_source_span(sources, left, right) for left, right in found]
    raise AlignmentError(f"pieces {pieces!r} do not make up {text!r} under any known normalisation")


def _with_sources(text: str, normalise: Callable[[str], str]) -> tuple[bytes, list[Span]]:
    """Return the normalised text as bytes without blanks, and for each byte its characters in `text`."""
    data, sources = bytearray(), []
    starts = [at for at, c in enumerate(text) if at == 0 or not unicodedata.combining(c)]
    for start, end in zip(starts, [*starts[1:], len(text)]):
        written = "".join(normalise(text[start:end]).split()).encode()
        data += written
        sources += [(start, end)] * len(written)
    return bytes(data), sources


def _glob(pieces: Sequence[bytes | None], data: bytes) -> list[Span] | None:
    """Return the byte ranges of pieces: known ones match exactly, runs of unknown ones share the bytes in between."""
    spans: list[Span] = []
    here = 0
    runs = _runs(pieces)
    for index, (unknown, known) in enumerate(runs):
        literal = b"".join(known)
        if not known:
            at = len(data)
        elif unknown and index == len(runs) - 1:
            at = len(data) - len(literal)
        else:
            at = data.find(literal, here + unknown) if unknown else here
        if at < here + unknown or data[at : at + len(literal)] != literal:
            return None
        spans += [(here, at)] * unknown
        here = at
        for piece in known:
            spans.append((here, here + len(piece)))
            here += len(piece)
    return spans if here == len(data) else None


def _runs(pieces: Sequence[bytes | None]) -> list[tuple[int, list[bytes]]]:
    """Yield (number of unknown pieces, the known pieces after them)."""
    runs: list[tuple[int, list[bytes]]] = [(0, [])]
    for piece in pieces:
        unknown, known = runs[-1]
        if piece is not None:
            known.append(piece)
        elif known:
            runs.append((1, []))
        else:
            runs[-1] = (unknown + 1, known)
    return runs


def _source_span(sources: list[Span], left: int, right: int) -> Span:
    if left == right:
        at = sources[left][0] if left < len(sources) else sources[-1][1] if sources else 0
        return at, at
    return sources[left][0], sources[right - 1][1]
