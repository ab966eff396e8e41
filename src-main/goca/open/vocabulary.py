"""Background vocabularies: configs/vocabulary/NAME.yaml, or a list in the model's config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from goca.config_folder import config_folder
from goca.errors import GocaError
from goca.files.text import read_yaml
from goca.schema import nearest, shown


class VocabularyError(GocaError, ValueError):
    """A background vocabulary is unknown, or not a list of words."""


def background_words(vocabulary: str | Sequence[str]) -> tuple[str, ...]:
    """The words of a list in configs/vocabulary by its name, or of the list itself. Raises VocabularyError."""
    if isinstance(vocabulary, str):
        return read_vocabulary(vocabulary)
    words = tuple(vocabulary)
    if wrong := [word for word in words if not isinstance(word, str) or not word.strip()]:
        raise VocabularyError(f"the background vocabulary contains {wrong[0]!r}; expected words")
    return tuple(dict.fromkeys(" ".join(word.lower().split()) for word in words))


@cache
def read_vocabulary(name: str) -> tuple[str, ...]:
    known = sorted(file.stem for file in folder().glob("*.yaml"))
    if name not in known:
        near, there = nearest(name, known), ", ".join(known)
        raise VocabularyError(f"unknown vocabulary {shown(name)} (nearest: {near}); expected one of: {there}")
    words = read_yaml(folder() / f"{name}.yaml")
    if not isinstance(words, list):
        raise VocabularyError(f"vocabulary/{name}.yaml contains a {type(words).__name__}; expected a list of words")
    return background_words(words)


def folder() -> Path:
    """configs/vocabulary."""
    return config_folder() / "vocabulary"
