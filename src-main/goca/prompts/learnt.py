"""Learnt tokens (textual inversion) in a prompt: each is one word, whatever its number of vectors.

A pipeline expands "<toy>" of three vectors to "<toy> <toy>_1 <toy>_2" before it tokenises the prompt. While a prompt is
split into words, one letter stands for a learnt token, so that its marks are not read as punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .grammar import CaptionError

Span = tuple[int, int]

LETTERS = 0x10600  # Linear A: letters that do not occur in prompts


class LearntTokens:
    """Learnt tokens of some tokenizers, and their places in texts.

    learnt = LearntTokens([tokenizer])
    hidden = learnt.hide("a <toy> on grass")    # one letter in place of <toy>
    learnt.show(hidden)                         # "a <toy> on grass"
    learnt.written_out(hidden, tokenizer)       # "a <toy> <toy>_1 on grass", and each character's origin
    """

    def __init__(self, tokenizers: Sequence[Any]):
        names = sorted({name for tokenizer in tokenizers for name in added_tokens(tokenizer)})
        self.letters = {name: chr(LETTERS + number) for number, name in enumerate(names)}
        self.names = {letter: name for name, letter in self.letters.items()}

    @classmethod
    def of(cls, tokenizer: Any, tokenizer_2: Any = None, **lengths: int | None) -> LearntTokens:
        """Make from the tokenizer arguments of `goca.prompts.annotate`."""
        return cls([tokenizer] if tokenizer_2 is None else [tokenizer, tokenizer_2])

    def hide(self, text: str, any_case: bool = False) -> str:
        """Replace each learnt token by a letter; `any_case`: ignore upper and lower case."""
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
        """Replace the letters by their learnt tokens."""
        return "".join(self.names.get(character, character) for character in text) if self.names else text

    def written_out(self, prompt: str, tokenizer: Any) -> tuple[str, list[Span] | None]:
        """Return the text that the pipeline gives this tokenizer, and each character's span in the prompt (None: same).

        prompt  with learnt tokens or with their letters
        Raises CaptionError if a learnt token's name contains another's: diffusers then expands them unpredictably.
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
    """Return the tokens added to a tokenizer's vocabulary, without special ones."""
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    return {
        name: number for name, number in getattr(tokenizer, "added_tokens_encoder", {}).items() if name not in special
    }


def vectors(text: str, tokenizer: Any) -> dict[str, str]:
    """Return the text's learnt tokens of several vectors and their expansions, as diffusers makes them."""
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
                f"the learnt tokens {name!r} and {twin!r} contain one another, so the pipeline mixes them "
                f"up: leave one of them out of the prompt, or load it under another name"
            )
    return found
