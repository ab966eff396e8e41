"""Tokenise a prompt as the text encoder does, and assign each token to an entity.

tokens = tokenise("cat, grass", [clip_tokenizer], [77])     # position, piece, span in the prompt, kind
owners = SPANS["offsets"].own(entities, prompt, tokens)     # index of the entity per token, or None
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .alignment import piece_spans
from .grammar import STOP_WORDS, CaptionError, Entity, is_mark
from .learnt import LearntTokens, added_tokens

UNLIMITED = 1_000_000  # a tokenizer without a limit has a far larger model_max_length


@dataclass(frozen=True)
class Token:
    """One token of the prompt.

    position  index in the encoder's sequence, BOS included
    piece     its text in the vocabulary, without word marks ("</w>", "▁"); BERT keeps its "##"
    span      [start, end) in the prompt; (0, 0) for tokens added by the tokenizer
    kind      "word", "global" (stands for the sentence) or "special" (padding, separators, a lone "▁")
    learnt    whether it is a vector of a learnt token (textual inversion); its span is that of the whole token
    """

    position: int
    piece: str
    span: tuple[int, int]
    kind: str
    learnt: bool = False


@dataclass(frozen=True)
class Family:
    """How one kind of text encoder writes tokens: the token for the whole sentence, and the word mark."""

    sentence: str | None  # attribute of the tokenizer; None: the last token, which attends to all others
    mark: str


FAMILIES = {
    "clip": Family("bos_token", "</w>"),
    "t5": Family("eos_token", "▁"),
    "bert": Family("cls_token", ""),
    "chat": Family(None, "Ġ"),  # a language model, through diffusion_feature.chat.PromptReader
}

# families of (tokenizer, tokenizer_2) -> those whose tokens the denoiser attends to
SEQUENCES = {
    ("clip",): (0,),
    ("t5",): (0,),
    ("bert",): (0,),
    ("chat",): (0,),
    ("clip", "clip"): (0,),  # SDXL: both encoders share their token positions
    ("clip", "t5"): (1,),  # Flux: of CLIP, only the pooled output is used
    ("bert", "t5"): (0, 1),  # HunyuanDiT: one after the other
}


def family_of(tokenizer: Any) -> str:
    """Return "chat" for a language model's reader, else "clip", "t5" or "bert", by the tokenizer's special tokens.

    Raises CaptionError for any other tokenizer.
    """
    if getattr(tokenizer, "template", None) is not None:
        return "chat"
    if getattr(tokenizer, "chat_template", None):
        raise CaptionError(
            f"{type(tokenizer).__name__} is a language model's: token positions depend on the template around the "
            "prompt. Use the tokenizers of `diffusion_feature.families.backbone(version).tokenizers(parts)`"
        )
    if getattr(tokenizer, "cls_token", None) and getattr(tokenizer, "sep_token", None):
        return "bert"
    if getattr(tokenizer, "eos_token", None):
        return "clip" if getattr(tokenizer, "bos_token", None) else "t5"
    raise CaptionError(f"{type(tokenizer).__name__} has neither [CLS] and [SEP] (BERT) nor an end token (CLIP, T5)")


def tokenise(
    prompt: str, tokenizers: Sequence[Any], max_lengths: Sequence[int | None], learnt: LearntTokens | None = None
) -> list[Token]:
    """Return the tokens of the sequence that the denoiser attends to, by the tokenizers' families.

    max_lengths  one per tokenizer; None is the tokenizer's own. The second sequence starts where the first one,
                 padded to its length, ends. Raises CaptionError for an unknown pair or a missing length.
    learnt       the learnt tokens whose letters the prompt may hold
    """
    families, learnt = _families(tokenizers), learnt or LearntTokens(tokenizers)
    tokens: list[Token] = []
    start = 0
    for index in SEQUENCES[families]:
        length = _length(tokenizers[index], max_lengths[index])
        tokens += _sequence(prompt, tokenizers[index], families[index], length, start, learnt)
        if index != SEQUENCES[families][-1] and length is None:
            raise CaptionError("the first of two tokenizers needs max_length: the second one's tokens come after it")
        start += length or 0
    return tokens


def count_uncut(
    prompt: str, tokenizers: Sequence[Any], max_lengths: Sequence[int | None], learnt: LearntTokens | None = None
) -> int:
    """How many tokens `tokenise` would find in the last sequence of a prompt, and before it, if nothing were cut."""
    uncut: list[int | None] = [UNLIMITED] * len(tokenizers)
    for index in SEQUENCES[_families(tokenizers)][:-1]:
        uncut[index] = max_lengths[index]
    return len(tokenise(prompt, tokenizers, uncut, learnt))


def _families(tokenizers: Sequence[Any]) -> tuple[str, ...]:
    families = tuple(family_of(tokenizer) for tokenizer in tokenizers)
    if families not in SEQUENCES:
        known = ", ".join(" + ".join(pair) for pair in SEQUENCES)
        raise CaptionError(f"tokenizers {' + '.join(families)} are an unknown combination; expected one of: {known}")
    return families


def _length(tokenizer: Any, max_length: int | None) -> int | None:
    length = tokenizer.model_max_length if max_length is None else max_length
    if length < 2:
        raise CaptionError(f"max_length is {length}; a prompt needs at least 2 tokens")
    return int(length) if length < UNLIMITED else None


def _sequence(
    prompt: str, tokenizer: Any, name: str, length: int | None, start: int, learnt: LearntTokens
) -> list[Token]:
    family = FAMILIES[name]
    read, sources = learnt.written_out(prompt, tokenizer)
    ids, spans = _encode(read, tokenizer, name, length)
    if sources is not None:
        spans = [(sources[first][0], sources[end - 1][1]) if end > first else (0, 0) for first, end in spans]
    learnt_ids = set(added_tokens(tokenizer).values()) if learnt.letters else set()
    sentence = None if family.sentence is None else getattr(tokenizer, family.sentence)
    added = {getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "cls", "sep", "mask")} - {None}
    tokens = []
    for position, (number, text, span) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), spans)):
        piece = text.replace(family.mark, "") if family.mark else text
        kind = "global" if text == sentence else "special" if text in added or not piece else "word"
        if sentence is None and span[0] == span[1]:  # the template and padding
            kind = "global" if position == len(ids) - 1 else "special"
        tokens.append(Token(start + position, piece, span, kind, number in learnt_ids))
    return tokens


def _encode(prompt: str, tokenizer: Any, name: str, length: int | None) -> tuple[list[int], list[tuple[int, int]]]:
    cut = {"truncation": True, "max_length": length} if length else {}
    if tokenizer.is_fast:
        encoded = tokenizer(prompt, return_offsets_mapping=True, **cut)
        return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    ids = list(tokenizer(prompt, **cut)["input_ids"])
    return ids, piece_spans(prompt, tokenizer, name, ids)


# --- assigning tokens to entities --------------------------------------------------------------------------------


def own_by_offsets(
    entities: Sequence[Entity], prompt: str, tokens: Sequence[Token], separator: str = ", "
) -> list[int | None]:
    """Assign each token to the entity at its offsets; the prompt is the entities joined by the separator.

    Not assigned: special tokens, punctuation, and the words a, an, the, and.
    """
    entity_at: list[int | None] = []
    for index, entity in enumerate(entities):
        entity_at += [index] * len(entity.text) + [None] * len(separator)
    silent = [is_mark(character) for character in prompt]
    for word in re.finditer(rf"(?<!\w)(?:{'|'.join(STOP_WORDS)})(?!\w)", prompt):
        silent[word.start() : word.end()] = [True] * len(word[0])
    owners = []
    for token in tokens:
        spoken = [at for at in range(*token.span) if not silent[at]] if token.kind == "word" else []
        owners.append(next((entity_at[at] for at in spoken if entity_at[at] is not None), None))
    return owners


def own_by_search(entities: Sequence[Entity], prompt: str, tokens: Sequence[Token]) -> list[int | None]:
    """Assign each token to the first entity whose FIRST occurrence covers it, as the released evaluation does.

    Pieces are searched from left to right. A piece that is not found counts as starting one character earlier, and the
    search still advances by its length. Exactly at the prompt's end it starts again. If it has not reached the end
    after BERT's tokens, or is past it, T5's are searched from that position on, and most of them are not assigned.
    """
    starts = [prompt.find(entity.text) for entity in entities]
    spans = [(start, start + len(entity.text)) for start, entity in zip(starts, entities)]
    owners: list[int | None] = []
    here = 0
    for token in tokens:
        if token.kind != "word":
            owners.append(None)
            continue
        if token.learnt:
            start, end = token.span
        else:
            found = prompt.find(token.piece, here)
            start = found if found >= 0 else here - 1
            end = start + len(token.piece)
        here = end
        if here == len(prompt):
            here = 0
        inside = (index for index, (first, last) in enumerate(spans) if first <= start and end <= last)
        owners.append(None if token.piece in (*STOP_WORDS, ",", ".", "-") else next(inside, None))
    return owners


def without_invisible(text: str) -> str:
    """Normalise a text like the slow CLIP tokenizer of the released evaluation.

    Control and invisible characters (Unicode's C categories, U+FFFD) are dropped, so "per\u00adson" is one word; all
    white space becomes blanks, and each Chinese character is a word.
    """
    read = []
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            read.append(" ")
        elif _is_ideograph(character):
            read.append(f" {character} ")
        elif unicodedata.category(character)[0] != "C" and character != "\ufffd":
            read.append(character)
    return "".join(read)


def _is_ideograph(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))


def by_entity(positions: list[int]) -> list[int]:
    """Order a class's tokens with those of its first entity first."""
    return positions


@dataclass(frozen=True)
class TokenSpans:
    """How the tokens of a class are found: one value of the protocol's switch `token_spans`.

    own    (entities, prompt, tokens) -> index of the entity per token, or None
    order  the tokens of all entities of one class, entity after entity -> as they stand in the annotation
    read   family of a tokenizer -> normalisation of the prompt before tokenising, here and for the text encoder
    """

    own: Callable[[Sequence[Entity], str, Sequence[Token]], list[int | None]]
    order: Callable[[list[int]], list[int]]
    read: Mapping[str, Callable[[str], str]] = field(default_factory=dict)


SPANS = {
    "offsets": TokenSpans(own_by_offsets, order=by_entity),
    "search": TokenSpans(own_by_search, order=sorted, read={"clip": without_invisible}),
}


def as_read(prompt: str, tokenizers: Sequence[Any], token_spans: str) -> str:
    """Return the prompt as its tokenizers read it, by the protocol's switch `token_spans`. Raises CaptionError."""
    if read := SPANS[token_spans].read:
        families = _families(tokenizers)
        for index in SEQUENCES[families]:
            prompt = read.get(families[index], str)(prompt)
    return prompt
