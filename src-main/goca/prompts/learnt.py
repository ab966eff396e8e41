"""Learnt tokens (textual inversion) in a prompt: each is one word, however many vectors stand for it.

A pipeline writes "<toy>" of three vectors out as "<toy> <toy>_1 <toy>_2" before it is tokenised. While words are told
apart, a learnt token is one letter, so that no grammar takes its marks for punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .grammar import CaptionError

Span = tuple[int, int]

LETTERS = 0x10600  # Linear A: letters that no prompt holds


class LearntTokens:
    """The tokens that were added to some tokenizers, in texts.

        learnt = LearntTokens([tokenizer])
        hidden = learnt.hide("a <toy> on grass")    # one letter in place of <toy>
        learnt.show(hidden)                         # "a <toy> on grass"
        learnt.written_out(hidden, tokenizer)       # "a <toy> <toy>_1 on grass", and where each character comes from
    """

    def __init__(self, tokenizers: Sequence[Any]):
        names = {name for tokenizer in tokenizers for name in added_tokens(tokenizer)}
        longest_first = sorted(names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if names else None
        self.letters: dict[str, str] = {}  # in lower case -> its letter
        self.names: dict[str, str] = {}  # letter -> as it was written first

    def hide(self, text: str) -> str:
        """The text with a letter for each learnt token."""
        return self.pattern.sub(self._letter, text) if self.pattern else text

    def _letter(self, match: re.Match[str]) -> str:
        letter = self.letters.setdefault(match[0].lower(), chr(LETTERS + len(self.letters)))
        self.names.setdefault(letter, match[0])
        return letter

    def show(self, text: str) -> str:
        """The text with the learnt tokens in place of their letters."""
        return "".join(self.names.get(character, character) for character in text) if self.names else text

    def written_out(self, prompt: str, tokenizer: Any) -> tuple[str, list[Span] | None]:
        """What the pipeline hands to this tokenizer, and for each character its span in the prompt (None: its own).

        prompt  hidden or not
        Raises CaptionError where a learnt token is written inside another one: what diffusers makes of them is chance.
        """
        shown = self.show(prompt)
        several = vectors(shown, tokenizer) if self.pattern else {}
        if not several and shown == prompt:
            return prompt, None
        parts = "|".join(map(re.escape, [*self.names, *several]))
        text, sources, here = "", list[Span](), 0
        for match in re.finditer(parts, prompt):
            text += prompt[here : match.start()]
            sources += [(at, at + 1) for at in range(here, match.start())]
            name = self.names.get(match[0], match[0])
            written = several.get(name, name)
            text, here = text + written, match.end()
            sources += [match.span()] * len(written)
        sources += [(at, at + 1) for at in range(here, len(prompt))]
        return text + prompt[here:], sources


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that were added to a tokenizer's vocabulary, without the special ones."""
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    return {name: number for name, number in getattr(tokenizer, "added_tokens_encoder", {}).items()
            if name not in special}  # fmt: skip


def vectors(text: str, tokenizer: Any) -> dict[str, str]:
    """The text's learnt tokens of several vectors, and how they are written out: as diffusers does it."""
    known = added_tokens(tokenizer)
    if not any(f"{name}_1" in known for name in known):
        return {}
    present = [name for name in dict.fromkeys(tokenizer.tokenize(text)) if name in known]
    found = {}
    for name in present:
        more = [name]
        while f"{name}_{len(more)}" in known:
            more.append(f"{name}_{len(more)}")
        if len(more) > 1:
            found[name] = " ".join(more)
    for name in found:
        if twin := next((other for other in present if other != name and name in found.get(other, other)), None):
            raise CaptionError(
                f"the learnt tokens {name!r} and {twin!r} are written inside one another, so the pipeline mixes them "
                f"up: leave one of them out of the prompt, or load it under another name"
            )
    return found
