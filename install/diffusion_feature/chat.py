"""Prompts for language models: the template around them, and where words are among the denoiser's tokens.

The input of a language model holds more than the user's words: instructions before them, markers after them, padding.
The denoiser may be given only some of its states. `PromptReader` is a tokenizer for those: positions count from the
first token that the denoiser is given, and only tokens of the user's own words have spans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.devices import device_of
from diffusion_feature.errors import ExtractorError

MARKER = "\ue000"  # replaces the prompt to find the template's text before and after it
Span = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """How a family hands a prompt to its language model.

    write     (tokenizer, prompt) -> the text that is tokenised
    length    maximum number of text tokens that the denoiser is given
    drop      number of tokens after the first `keep` that it is not given; an int, or a function of the tokenizer
    fixed     the text is padded to `length`; otherwise it is as long as the prompt needs
    multiple  padded to a multiple of so many tokens
    left      padded on the left; None: as the tokenizer is configured
    special   the tokenizer adds its special tokens
    pieces    split the text into parts that are tokenised separately
    """

    write: Callable[[Any, str], str]
    length: int
    drop: int | Callable[[Any], int] = 0
    keep: int = 0
    fixed: bool = False
    multiple: int = 1
    left: bool | None = None
    special: bool = True
    pieces: Callable[[str], Sequence[str]] = lambda text: [text]


def bare(tokenizer: Any, prompt: str) -> str:
    """The prompt without a template."""
    return prompt


def between(before: str, after: str = "") -> Callable[[Any, str], str]:
    """A template that is written out."""
    return lambda tokenizer, prompt: before + prompt + after


def chat(system: str = "", before: str = "", parted: bool = False, **options: Any) -> Callable[[Any, str], str]:
    """The tokenizer's own chat template: a system message, where there is one, and the user's.

    parted   contents are lists of parts, of which one is the text
    """

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if parted else text}

    def write(tokenizer: Any, prompt: str) -> str:
        messages = [message("system", system)] if system else []
        messages.append(message("user", before + prompt))
        return tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True} | options)

    return write


class PromptReader:
    """A tokenizer whose tokens are those that the denoiser is given.

    given   number of text tokens that the denoiser was given, if known: a batch is padded to its longest prompt
    """

    is_fast = True
    added_tokens_encoder: Mapping[str, int] = MappingProxyType({})  # language models have no textual inversion

    def __init__(self, tokenizer: Any, template: Template, given: int | None = None):
        self.writer, self.template, self.given = tokenizer, template, given
        self.tokenizer = tokenizer.tokenizer if hasattr(tokenizer, "image_processor") else tokenizer  # of a processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    @cached_property
    def around(self) -> tuple[int, int]:
        """How many characters the template writes before and after the prompt."""
        before, _, after = self.template.write(self.writer, MARKER).partition(MARKER)
        return len(before), len(after)

    def __call__(self, prompt: str, max_length: int | None = None, **unused: Any) -> dict[str, list[Any]]:
        """Token ids and their spans in the prompt, padding on the left included."""
        ids, spans = self.whole(prompt, max_length or self.template.length)
        if self.left:
            missing = max((self.given or 0) + self.drop, self.padded(len(ids))) - len(ids)
            ids, spans = [self.pad] * missing + ids, [(0, 0)] * missing + spans
        return {"input_ids": self.kept(ids), "offset_mapping": self.kept(spans)}

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id or 0

    @property
    def left(self) -> bool:
        own = getattr(self.tokenizer, "padding_side", "right") == "left"
        return own if self.template.left is None else self.template.left

    @cached_property
    def drop(self) -> int:
        drop = self.template.drop
        return drop if isinstance(drop, int) else drop(self.tokenizer)

    def kept(self, tokens: Any) -> Any:
        """The tokens that the denoiser is given, of a list or along a tensor's first axis."""
        first, rest = tokens[: self.template.keep], tokens[self.template.keep + self.drop :]
        return torch.cat([first, rest]) if isinstance(tokens, Tensor) else first + rest

    def padded(self, count: int) -> int:
        """Number of tokens after padding, from the number of the text's."""
        if self.template.fixed:
            return max(count, self.template.length + self.drop)
        return count + -(count - self.drop) % self.template.multiple

    def count(self, prompt: str) -> int:
        """Number of text tokens that the denoiser is given for a prompt."""
        return self.padded(len(self.whole(prompt, self.template.length)[0])) - self.drop

    def refuse_other_length(self, prompts: Sequence[str], exact: bool = True) -> None:
        """Raises ExtractorError where the denoiser was not given as many text tokens as the longest prompt needs.

        exact   False: more are understood, since a longer negative prompt shares the call
        """
        if self.given is None or self.template.fixed or not prompts:
            return
        longest = max(map(self.count, prompts))
        if longest > self.given or (exact and longest < self.given):
            raise ExtractorError(
                f"the denoiser was given {self.given} text tokens where the prompt makes {longest}, so which token is "
                "whose is not known: was an image given beside the prompt, or embeddings, or max_sequence_length?"
            )

    def whole(self, prompt: str, length: int | None) -> tuple[list[int], list[Span]]:
        """All tokens of the language model's input but padding, and their spans in the prompt; (0, 0): the template's.

        length   tokens that are kept, those that are dropped not counted; None: all
        """
        text = self.template.write(self.writer, prompt)
        before, after = self.around
        start, end = before, len(text) - after
        sources = origins(text[start:end], prompt)
        limit = length + self.drop if length else None
        ids, spans = list[int](), list[Span]()
        here = 0  # where the piece starts in the text
        for piece in self.template.pieces(text):
            found, where = self.encode(piece, limit)
            ids += found
            for left, right in where:
                left, right = max(left + here, start) - start, min(right + here, end) - start
                spans.append((sources[left][0], sources[right - 1][1]) if left < right else (0, 0))
            here += len(piece)
        return ids[:limit], spans[:limit]

    def encode(self, text: str, limit: int | None) -> tuple[list[int], list[Span]]:
        """A text's token ids and their spans in it."""
        cut: dict[str, Any] = {"truncation": True, "max_length": limit} if limit else {}
        kinds: dict[str, Any] = {"add_special_tokens": self.template.special}
        if self.tokenizer.is_fast:
            found = self.tokenizer(text, return_offsets_mapping=True, verbose=False, **kinds, **cut)
            return list(found["input_ids"]), [(int(left), int(right)) for left, right in found["offset_mapping"]]
        ids = list(self.tokenizer(text, verbose=False, **kinds, **cut)["input_ids"])
        return ids, piece_spans(self.tokenizer.convert_ids_to_tokens(ids), text)

    def cut(self, prompt: str) -> str:
        """The truncated end of the prompt."""
        spans = self.whole(prompt, self.template.length)[1]
        every = self.whole(prompt, None)[1]
        lost = [span for span in every if span[1] > max(end for _, end in spans) and span != (0, 0)]
        return prompt[min(left for left, _ in lost) :].strip(" ,") if len(every) > len(spans) and lost else ""


def origins(text: str, prompt: str) -> list[Span]:
    """For each character of a text its span in the prompt, which a template may have stripped or cleaned."""
    if (at := prompt.find(text)) >= 0:
        return [(at + number, at + number + 1) for number in range(len(text))]
    spans, here = list[Span](), 0
    for character in text:
        found = next((i for i in range(here, len(prompt)) if same_character(character, prompt[i])), here)
        spans.append((min(found, len(prompt) - 1), min(found + 1, len(prompt))))
        here = found + 1
    return spans


def same_character(one: str, other: str) -> bool:
    return one == other or (one.isspace() and other.isspace())


def piece_spans(pieces: Sequence[str], text: str) -> list[Span]:
    """Spans of a sentencepiece model's pieces in the text; (0, 0) for pieces that are not in it."""
    spans, here = list[Span](), 0
    for piece in pieces:
        written = piece.replace("\u2581", " ").strip()
        at = text.find(written, here) if written else -1
        near = at >= 0 and not text[here:at].strip()
        spans.append((at, at + len(written)) if near else (0, 0))
        here = at + len(written) if near else here
    return spans


States = Callable[[Any, Tensor, Tensor], Tensor]  # encoder, token ids [1, L], mask [1, L] -> states [1, L, c]


def language_states(
    reader: PromptReader, encoder: Any, prompts: Sequence[str], states: States
) -> tuple[Tensor, Tensor, list[str]]:
    """Text states for the denoiser [B, N, c], the mask of tokens that are not padding [B, N], truncated text.

    Every prompt is encoded on its own, as the pipeline encodes a single one, so batches equal single prompts.
    errors   ExtractorError for prompts of different lengths, where the text is not padded to a fixed one
    """
    template, device = reader.template, device_of(encoder)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for prompt in dict.fromkeys(prompts):
        ids = reader.whole(prompt, template.length)[0]
        missing = reader.padded(len(ids)) - len(ids)
        padding, seen = [reader.pad] * missing, [1] * len(ids)
        row = [*padding, *ids] if reader.left else [*ids, *padding]
        mask = [0] * missing + seen if reader.left else seen + [0] * missing
        tokens, attended = (torch.tensor([each], device=device) for each in (row, mask))
        found[prompt] = reader.kept(states(encoder, tokens, attended)[0]), reader.kept(attended[0])
    lengths = {len(mask) for _, mask in found.values()}
    if len(lengths) > 1:
        raise ExtractorError(
            f"the prompts have {' and '.join(map(str, sorted(lengths)))} tokens: prompts that share a forward of this "
            "family need equally many, as it cannot hide padding; give them one at a time"
        )
    rows, masks = zip(*(found[prompt] for prompt in prompts))
    return torch.stack(rows), torch.stack(masks), [reader.cut(prompt) for prompt in prompts]


def last_states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states."""
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def several_layers(layers: Sequence[int]) -> States:
    """The hidden states of several layers side by side."""

    def states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        found = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        return torch.cat([found[layer] for layer in layers], dim=-1)

    return states


def hidden_states(layer: int, masked: bool = True) -> States:
    """The hidden states of one layer; `masked`: padding is hidden from the language model."""

    def states(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        seen = {"attention_mask": mask} if masked else {}
        return encoder(input_ids=ids, **seen, output_hidden_states=True).hidden_states[layer]

    return states
