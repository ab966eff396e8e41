"""Weights that people write into prompts, "(star:1.3), [sky:0.8]" or "(star)1.3": ignored, with a warning."""

from __future__ import annotations

import re
import warnings

from .grammar import balanced

NUMBER = r"[+-]?(?:\d?\.\d+|\d)(?![\d.])"
WEIGHT = re.compile(rf":\s*{NUMBER}\s*(?=[)\]])|(?<=[)\]]){NUMBER}(?!\w)")


class PromptWeights(UserWarning):
    """The prompt holds weights, which are not applied."""


def weight_spans(prompt: str) -> list[tuple[int, int]]:
    """Find weights: a colon and a number before a closing bracket, or a number right after it."""
    partners = balanced(prompt)
    return [found.span() for found in WEIGHT.finditer(prompt) if {found.start() - 1, found.end()} & partners]


def blanked(prompt: str) -> str:
    """Replace weights by blanks, so that positions stay the same. Warns with PromptWeights if there are any."""
    read = prompt
    for start, end in weight_spans(prompt):
        read = read[:start] + " " * (end - start) + read[end:]
    if read != prompt:
        start, end = weight_spans(prompt)[0]
        warnings.warn(
            f"weights in a prompt, such as {prompt[start:end]!r}, are not applied: all words count equally",
            PromptWeights,
            stacklevel=4,
        )
    return read
