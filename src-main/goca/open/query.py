"""`Query`: the classes to look for in an image, with their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from goca.errors import GocaError
from goca.prompts.grammar import is_background, names_nothing, parse_brackets, read_groups
from goca.prompts.learnt import LearntTokens
from goca.prompts.weighting import blanked


class NoClass(GocaError, ValueError):
    """A prompt contains no class names."""

    @classmethod
    def of(cls, prompt: str | Sequence[str]) -> NoClass:
        return cls(f"the prompt {prompt!r} contains no class names; expected e.g. 'cat, grass, wall'")


class WordTwice(GocaError, ValueError):
    """A name occurs twice in a query."""


@dataclass(frozen=True)
class Query:
    """What is looked for in one image. `Query.of_words(["cat", "grass"])`, `Query.of({1: ["cat"], 2: ["dog"]})`.

    classes   (class id from 1, its names); all names of a class are in the same prompt, and its map combines theirs
    context   further words; their pixels are background
    """

    classes: tuple[tuple[int, tuple[str, ...]], ...]
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for class_id, names in self.classes:
            if class_id < 1 or not names or not all(names):
                raise NoClass(f"class {class_id} has the names {list(names)}; expected an id from 1, and names")
            for name in names:
                if name in seen:
                    raise WordTwice(f"{name!r} occurs twice (classes {seen[name]} and {class_id}); name it only once")
                seen[name] = class_id

    @classmethod
    def of(cls, classes: Mapping[int, Sequence[str]], context: Iterable[str] = ()) -> Query:
        """From class ids -> lists of names, in any case; context words that are also class names are left out."""
        found = tuple((class_id, tuple(clean(name) for name in names)) for class_id, names in classes.items())
        taken = {name for _, names in found for name in names}
        rest = dict.fromkeys(clean(word) for word in context)
        return cls(found, tuple(word for word in rest if word and word not in taken))

    @classmethod
    def of_words(cls, words: str | Sequence[str], learnt: LearntTokens | None = None) -> Query:
        """From a text such as "cat, (tree, trunk)", or a list of names; they become the classes 1, 2, ...

        learnt   the model's learnt tokens, which are kept as single words
        errors   NoClass, WordTwice

        Brackets enclose an object and its parts. Weights are ignored, and so is "background", which is everything
        that has no name.
        """
        texts = [words] if isinstance(words, str) else list(words)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise NoClass(f"{wrong[0]!r} is not a class name; expected texts such as ['cat', 'grass']")
        learnt = learnt or LearntTokens([])
        hidden = [learnt.hide(blanked(text), any_case=True).lower() for text in texts]
        read = [group for text in hidden for group in read_groups(text) if not is_background(group[0])]
        groups = [tuple(map(learnt.show, group)) for group in read]
        if all(names_nothing(group[0]) for group in read):
            raise NoClass.of(words)
        return cls(tuple(enumerate(groups, start=1)))

    @property
    def class_ids(self) -> list[int]:
        """The classes, in the order of their maps."""
        return [class_id for class_id, _ in self.classes]

    def only(self, class_ids: Iterable[int]) -> Query:
        """The query with only some of its classes."""
        kept = set(class_ids)
        return dataclasses.replace(self, classes=tuple(each for each in self.classes if each[0] in kept))

    def names(self) -> dict[int, str]:
        """Class id -> its first name."""
        return {class_id: names[0] for class_id, names in self.classes}


def clean(name: str) -> str:
    """A name in the form used in prompts: lower case, without commas and brackets."""
    return " ".join(item for group in parse_brackets(name.lower()) for item in group)
