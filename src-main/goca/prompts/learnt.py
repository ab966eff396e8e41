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
        names = sorted({name for tokenizer in tokenizers for name in added_tokens(tokenizer)})
        self.letters = {name: chr(LETTERS + number) for number, name in enumerate(names)}
        self.names = {letter: name for name, letter in self.letters.items()}

    @classmethod
    def of(cls, tokenizer: Any, tokenizer_2: Any = None, **lengths: int | None) -> LearntTokens:
        """From what `goca.prompts.annotate` takes."""
        return cls([tokenizer] if tokenizer_2 is None else [tokenizer, tokenizer_2])

    def hide(self, text: str, any_case: bool = False) -> str:
        """The text with a letter for each learnt token; `any_case`: also where it is written with other capitals."""
        if not self.letters:
            return text
        longest_first = "|".join(re.escape(name) for name in sorted(self.letters, key=len, reverse=True))
        lower = {name.lower(): letter for name, letter in self.letters.items()}
        return re.sub(
            longest_first,
            lambda found: self.letters.get(found[0]) or lower[found[0].lower()],
            text,
            flags=re.IGNORECASE if any_case else 0,
        )

    def show(self, text: str) -> str:
        """The text with the learnt tokens in place of their letters."""
        return "".join(self.names.get(character, character) for character in text) if self.names else text

    def written_out(self, prompt: str, tokenizer: Any) -> tuple[str, list[Span] | None]:
        """What the pipeline hands to this tokenizer, and for each character its span in the prompt (None: its own).

        prompt  hidden or not
        Raises CaptionError where a learnt token is written inside another one: what diffusers makes of them is chance.
        """
        shown = self.show(prompt)
        several = vectors(shown, tokenizer) if self.letters else {}
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
    return {
        name: number for name, number in getattr(tokenizer, "added_tokens_encoder", {}).items() if name not in special
    }


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
