"""PromptAnnotation: which tokens of a prompt name which class, and the file that holds one per image.

annotation = PromptAnnotation.from_json(json.loads(text))
annotation.existent_objects          # {8: [1], 18: [3]}: class id -> positions in the tokenised caption
annotation.lost_classes()            # present classes without a token
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from goca.errors import GocaError
from goca.files.atomic import whole_file
from goca.files.bounded_json import JSONUnreadable, NotText, read_json
from goca.schema import shown

LARGEST, DIGITS = 2**31, 9  # upper bound of token positions and class ids; most digits of class ids as text
FIELDS = ("caption", "rescaling_token_id", "existent_objects", "global_token_id", "background_objects")


class AnnotationError(GocaError, ValueError):
    """A prompt annotation, or a file of them, does not have the published form."""


@dataclass
class PromptAnnotation:
    """A caption and the token positions of its words, in the published form (positions count from 0, BOS included).

    caption             the text given to the text encoder
    rescaling_token_id  tokens of all entities; per-pixel rescaling divides by their sum
    existent_objects    class id -> its tokens; the order of the keys is the order of the score maps; a list may be
                        empty: the class is present but its words were cut off (see lost_classes)
    global_token_id     sentence tokens: BOS for CLIP and BERT, EOS for T5
    background_objects  one list of tokens per entity that is not a class
    Raises AnnotationError if a field has another form.
    """

    caption: str
    rescaling_token_id: list[int] = field(default_factory=list)
    existent_objects: dict[int, list[int]] = field(default_factory=dict)
    global_token_id: list[int] = field(default_factory=list)
    background_objects: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.caption, str):
            raise AnnotationError(f"caption is {shown(self.caption)}; expected a text")
        self.rescaling_token_id = _positions("rescaling_token_id", self.rescaling_token_id)
        self.global_token_id = _positions("global_token_id", self.global_token_id)
        if not isinstance(self.existent_objects, Mapping):
            raise AnnotationError(f"existent_objects is {shown(self.existent_objects)}; expected ids -> lists")
        self.existent_objects = {
            _class_id(key): _positions(f"existent_objects[{key}]", tokens)
            for key, tokens in self.existent_objects.items()
        }
        if not isinstance(self.background_objects, list | tuple):
            raise AnnotationError(f"background_objects is {shown(self.background_objects)}; expected lists")
        self.background_objects = [
            _positions(f"background_objects[{i}]", tokens) for i, tokens in enumerate(self.background_objects)
        ]

    @property
    def class_ids(self) -> list[int]:
        """The class ids, in the order of their score maps."""
        return list(self.existent_objects)

    def lost_classes(self) -> list[int]:
        """Classes without a token: cut off by the tokenizer's length, or not found in the caption."""
        return [class_id for class_id, tokens in self.existent_objects.items() if not tokens]

    def last_token(self) -> int:
        """The highest token position used, or -1; for checks against a text's length."""
        return max(self._used(), default=-1)

    def _used(self) -> Iterator[int]:
        yield from self.rescaling_token_id
        yield from self.global_token_id
        for tokens in (*self.existent_objects.values(), *self.background_objects):
            yield from tokens

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PromptAnnotation:
        """Make an annotation from a decoded JSON object; further fields are ignored. Raises AnnotationError."""
        if not isinstance(record, Mapping):
            raise AnnotationError(f"an annotation is an object with {', '.join(FIELDS)}; found {shown(record)}")
        if missing := [name for name in FIELDS if name not in record]:
            raise AnnotationError(f"annotation lacks {', '.join(missing)}; it has: {', '.join(map(str, record))}")
        objects = record["existent_objects"]
        if isinstance(objects, Mapping) and len({_class_id(key) for key in objects}) < len(objects):
            raise AnnotationError(f"existent_objects names a class twice: {', '.join(map(str, objects))}")
        return cls(**{name: record[name] for name in FIELDS})

    def to_json(self) -> dict[str, Any]:
        """Return the published schema, ready for json.dumps: class ids become strings, their order is kept."""
        return {
            "caption": self.caption,
            "rescaling_token_id": list(self.rescaling_token_id),
            "existent_objects": {str(class_id): list(tokens) for class_id, tokens in self.existent_objects.items()},
            "global_token_id": list(self.global_token_id),
            "background_objects": [list(tokens) for tokens in self.background_objects],
        }


def read_annotations(path: str | os.PathLike[str]) -> dict[str, PromptAnnotation]:
    """Read a file, image file name -> annotation, in file order. Raises AnnotationError, naming the image."""
    annotations, refused = read_usable_annotations(path)
    for image, reason in refused.items():
        raise AnnotationError(f"{path}, image {shown(image)}: {reason}")
    return annotations


def read_usable_annotations(path: str | os.PathLike[str]) -> tuple[dict[str, PromptAnnotation], dict[str, str]]:
    """Read the usable annotations of a file, and the reason for each unusable one.

    Raises AnnotationError if the file is missing, incomplete, not a JSON object, or has duplicate keys.
    """
    annotations: dict[str, PromptAnnotation] = {}
    refused: dict[str, str] = {}
    for image, record in read_json_object(path, "annotations").items():
        try:
            check_image_name(image)
            annotations[image] = PromptAnnotation.from_json(record)
        except AnnotationError as error:
            refused[image] = str(error)
    return annotations, refused


def write_annotations(path: str | os.PathLike[str], annotations: Mapping[str, PromptAnnotation]) -> None:
    """Write the published file, image file name -> annotation, under a temporary name that is then renamed."""
    text = json.dumps({check_image_name(image): annotation.to_json() for image, annotation in annotations.items()})
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON object. Raises AnnotationError if it is missing, incomplete, no object, or has duplicate keys."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twin = next(name for name in names if names.count(name) > 1)
            raise AnnotationError(f"{path}: duplicate key {twin!r}; remove one of the two entries")
        return found

    try:
        found = read_json(path, no_twins)
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file of {what}") from None
    except (OSError, NotText) as error:
        raise AnnotationError(f"{path}: cannot be read as {what}: {error}") from None
    except JSONUnreadable as error:
        raise AnnotationError(f"{path}: is not JSON ({error}); is the file incomplete?") from None
    if not isinstance(found, dict):
        raise AnnotationError(f"{path}: expected an object, image file name -> {what}; found {shown(found)}")
    return found


def check_image_name(name: str) -> str:
    """Return `name` if it is a bare file name, as captions and annotations need; otherwise raise AnnotationError."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        expected = "expected a file name without folders, such as 2007_000027.jpg"
        raise AnnotationError(f"image name {shown(name)}: {expected}")
    return name


def _positions(name: str, tokens: Any) -> list[int]:
    if not isinstance(tokens, list | tuple):
        raise AnnotationError(f"{name} is {shown(tokens)}; expected a list of token positions")
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < LARGEST:
            raise AnnotationError(f"{name} holds {shown(token)}; token positions are whole numbers from 0 up")
    return list(tokens)


def _class_id(key: Any) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= DIGITS:
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < LARGEST:
        return key
    raise AnnotationError(f"existent_objects has the key {shown(key)}; class ids are whole numbers from 0 up")
