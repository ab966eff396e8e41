"""The instruction for the model: the words of the data set, and the rules for a caption."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goca.files.text import read_text
from goca.labeling.errors import LabelingError

FOLDER = Path(__file__).parent / "vocabulary"
CAPTION_LEN = 20
LONGEST = 20_000  # characters of an instruction
EXAMPLE = "(person, clothes), bicycle, dog, grass, tree, sky"

OWN_WORDS = """\
- Where one of the following words fits, use exactly that word; of words joined by "/", use one: {words}.
- Call everything else by its common name."""
TEMPLATE = (
    """\
Look at this picture and name what is in it. Your answer is read by a program, so it must be one plain list.

- Name the things in the foreground and what is behind and around them (ground, wall, sky and the like).
- Use nouns only: no adjectives, colours, numbers, verbs or sentences.
- Write at most {caption_len} words in all, the most visible things first.
- Name each category once, in the singular, however often it is seen.
- Put commas between things. Where one object is made of parts, or wears or carries something, put the object and its \
parts into one pair of round brackets: (person, clothes).
"""
    + OWN_WORDS
    + """

Answer with the list alone. An example, for another picture:
{example}"""
)
FREE = TEMPLATE.replace(OWN_WORDS, "- Call everything by its common name.")  # where the model chooses the words


@dataclass(frozen=True)
class Vocabulary:
    """The words of a data set.

    classes      class id -> names that a caption may use; class 0 (background) has none
    caption_len  words in a caption
    """

    classes: Sequence[Sequence[str]]
    caption_len: int = CAPTION_LEN
    example: str = EXAMPLE

    def instruction(self, caption_len: int | None = None, template: str = TEMPLATE) -> str:
        """Make the text that is sent with each image. Raises LabelingError for a length outside 1 to 200.

        template  a text that may use {words}, {caption_len} and {example}
        """
        length = self.caption_len if caption_len is None else caption_len
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= 200:
            raise LabelingError(f"caption_len is {length!r}; expected a number of words from 1 to 200")
        words = ", ".join(dict.fromkeys("/".join(names) for names in self.classes if names))
        filled = template.replace("{caption_len}", str(length)).replace("{example}", self.example)
        return filled.replace("{words}", words)


def read_template(path: str | os.PathLike[str]) -> str:
    """Read your own instruction from a text file. Raises LabelingError if it cannot be read or is empty."""
    try:
        text = read_text(Path(path).expanduser()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelingError(f"labeler.instruction={path} cannot be read: {error}") from None
    if not 0 < len(text) <= LONGEST:
        raise LabelingError(f"labeler.instruction={path} has {len(text)} characters; expected 1 to {LONGEST}")
    return text


def vocabularies() -> list[str]:
    """The data sets with a packaged vocabulary for labelling."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def vocabulary(name: str, class_names: Sequence[Sequence[str]]) -> Vocabulary:
    """Return a class table's packaged vocabulary; for any other table, its class names."""
    if name not in vocabularies():
        return Vocabulary(class_names)
    return Vocabulary(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
