"""Weights that people write into prompts, "(star:1.3), [sky:0.8]" or "(star)1.3": read over, for they are no words."""

from __future__ import annotations

import re
import warnings

from .grammar import balanced

NUMBER = r"[+-]?(?:\d?\.\d+|\d)(?![\d.])"
WEIGHT = re.compile(rf":\s*{NUMBER}\s*(?=[)\]])|(?<=[)\]]){NUMBER}(?!\w)")


class PromptWeights(UserWarning):
    """A prompt with weights; they are not applied."""


def weight_spans(prompt: str) -> list[tuple[int, int]]:
    """Where weights are written: a colon and a number before a closing bracket, or a number right after it."""
    partners = balanced(prompt)
    return [found.span() for found in WEIGHT.finditer(prompt) if {found.start() - 1, found.end()} & partners]


def blanked(prompt: str) -> str:
    """The prompt with blanks in place of its weights, so that places stay. Warns PromptWeights where there are any."""
    read = prompt
    for start, end in weight_spans(prompt):
        read = read[:start] + " " * (end - start) + read[end:]
    if read != prompt:
        start, end = weight_spans(prompt)[0]
        warnings.warn(
            f"weights in a prompt, such as {prompt[start:end]!r}, are not applied: every word counts alike",
            PromptWeights,
            stacklevel=4,
        )
    return read
