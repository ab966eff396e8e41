"""The words of a free-text prompt and their token positions.

words = PromptWords("a dog on the grass", tokenizer)
words.content             # {"dog": [2], "grass": [5]}
words.positions("dog")    # [2]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from goca.errors import GocaError

from .annotation import PromptAnnotation
from .grammar import is_background, is_mark
from .learnt import LearntTokens
from .tokens import count_uncut, tokenise
from .weighting import blanked

# words that name nothing visible
FUNCTION_WORDS = frozenset(
    """
    a an the and or nor but of in on at by to from for with without into onto over under above below behind beside
    between near next through across against around along inside outside up down off out is are was were be been
    being am has have had do does did will would can could it its this that these those there here he she they his
    her their them him i my we our you your who which what while as so than then not no very
    """.split()  # noqa: SIM905 - a list of words is read, not its quotes
)


class WordNotFound(GocaError, ValueError):
    """A word is not in the prompt, or its tokens were cut off; the message lists the prompt's words."""


class PromptWords:
    """Token positions of a prompt's words in the sequence that the denoiser attends to.

    prompt         the text given to the pipeline; learnt tokens are expanded here as the pipeline does it
    tokenizer(s)   as for goca.prompts.annotate
    further        words that are not in the prompt, in lower case, and their positions after its tokens
    """

    def __init__(
        self,
        prompt: str,
        tokenizer: Any,
        tokenizer_2: Any = None,
        max_length: int | None = None,
        max_length_2: int | None = None,
        further: Mapping[str, list[int]] | None = None,
    ):
        self.prompt, self.further = prompt, dict(further or {})
        tokenizers = [tokenizer] if tokenizer_2 is None else [tokenizer, tokenizer_2]
        self.learnt = LearntTokens(tokenizers)
        hidden = self.learnt.hide(prompt)
        self.read = blanked(hidden)  # with a letter for each learnt token and blanks for weights
        self._given = hidden, tokenizers, [max_length, max_length_2], self.learnt
        self.tokens = tokenise(*self._given)

    @cached_property
    def content(self) -> dict[str, list[int]]:
        """Content words, in lower case and in the prompt's order -> the tokens of all occurrences."""
        own = {word: tokens for word, tokens in self._named.items() if tokens}
        return own | {word: tokens for word, tokens in self.further.items() if word not in own}

    @property
    def lost(self) -> list[str]:
        """Content words without a token: they were cut off."""
        return [word for word, tokens in self._named.items() if not tokens]

    def token_counts(self) -> tuple[int, int]:
        """Count the tokens of the whole prompt and those left after truncation, both including special tokens."""
        return count_uncut(*self._given), len(self.tokens)

    @cached_property
    def _named(self) -> dict[str, list[int]]:
        found = dict.fromkeys(word.lower() for word in re.findall(r"[^\W_]+(?:(?:['-]|_+)[^\W_]+)*", self.read))
        return {self.learnt.show(word): self._find(word) for word in found if word not in FUNCTION_WORDS}

    @property
    def content_tokens(self) -> list[int]:
        """The tokens whose sum per-pixel rescaling divides by."""
        return sorted({token for tokens in self.content.values() for token in tokens})

    def positions(self, word: str) -> list[int]:
        """Return the tokens of a word, or of consecutive words, at every occurrence. Raises WordNotFound."""
        wanted = self.learnt.hide(" ".join(word.split()))
        found = (self._find(wanted) if wanted else []) or self.further.get(" ".join(word.lower().split()), [])
        if not found:
            there = ", ".join(self.content) or "(none)"
            why = "was cut off" if wanted and self._spans(wanted) else "is not in the prompt"
            raise WordNotFound(f"{word!r} {why} {self.prompt!r}; its words: {there}")
        return found

    def annotation(self, wanted: Sequence[str] | None = None) -> tuple[PromptAnnotation, dict[int, str]]:
        """Annotate the wanted words (None: all content words) as classes 1, 2, ..., all others as background.

        The word "background" is never a class.
        """
        names = [name for name in dict.fromkeys(self.content if wanted is None else wanted) if not is_background(name)]
        classes = {number: self.positions(name) for number, name in enumerate(names, start=1)}
        taken = {token for tokens in classes.values() for token in tokens}
        others = [tokens for tokens in self.content.values() if not taken.intersection(tokens)]
        sentence = [token.position for token in self.tokens if token.kind == "global"]
        annotation = PromptAnnotation(self.prompt, sorted({*self.content_tokens, *taken}), classes, sentence, others)
        return annotation, dict(enumerate(names, start=1))

    def _spans(self, word: str) -> list[tuple[int, int]]:
        pattern = r"[\s_]+".join(map(re.escape, re.split(r"[\s_]+", word)))  # tags join words with underscores
        return [found.span() for found in re.finditer(rf"(?<![^\W_]){pattern}(?![^\W_])", self.read, re.IGNORECASE)]

    def _find(self, word: str) -> list[int]:
        spans = self._spans(word)
        return [
            token.position
            for token in self.tokens
            if token.kind == "word"
            and any(token.span[0] < end and start < token.span[1] for start, end in spans)
            and not all(map(is_mark, self.read[slice(*token.span)]))
        ]
