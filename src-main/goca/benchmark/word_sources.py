"""Which classes are looked for in an image: the sources of a run's `words=`. Loads without torch.

source = WORD_SOURCES["vocabulary"]
source.offer(Asked(class_names), sample, "")      # Offer(caption="", class_ids=[1, 2, ...], add_missing=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from goca.datasets import Sample
from goca.errors import GocaError
from goca.schema import ConfigError, Range, Text, check_fields, check_names, shown

DEFAULT = "present"  # as published


@dataclass(frozen=True)
class Asked:
    """What a source may know besides the image.

    class_names  class id -> its names; class 0 is the background
    add_missing  whether the data set's config appends present classes that the caption does not name
    tagger       image -> ids of the classes that an image-text model finds: a goca.open.tagging.Tagger
    """

    class_names: Sequence[Sequence[str]]
    add_missing: bool = False
    tagger: Any = None

    @property
    def vocabulary(self) -> list[int]:
        """Ids of all classes that have a name; where two have the same first name (COCO-Stuff), the lower one."""
        first: dict[str, int] = {}
        for class_id, names in enumerate(self.class_names):
            if class_id and names:
                first.setdefault(names[0], class_id)
        return list(first.values())


@dataclass(frozen=True)
class Offer:
    """What is looked for in one image.

    caption      the caption; "": none
    class_ids    the classes that its words may name
    add_missing  whether classes that it does not name are appended
    """

    caption: str
    class_ids: list[int]
    add_missing: bool


@dataclass(frozen=True)
class WordSource:
    """A source of class names.

    offer     (what may be known, sample, its caption) -> Offer
    captions  whether it reads captions; otherwise `offer` gets ""
    oracle    a sentence for results: what the run knows about an image beforehand
    """

    offer: Callable[[Asked, Sample, str], Offer]
    captions: bool
    oracle: str


def present(asked: Asked, sample: Sample, caption: str) -> Offer:
    """The present classes of the ground truth, in the caption's words; as published."""
    return Offer(caption, sample.present, asked.add_missing)


def named(asked: Asked, sample: Sample, caption: str) -> Offer:
    """The classes that the caption names, and no others."""
    return Offer(caption, asked.vocabulary, False)


def every(asked: Asked, sample: Sample, caption: str) -> Offer:
    """Every class of the data set."""
    return Offer("", asked.vocabulary, True)


def tagged(asked: Asked, sample: Sample, caption: str) -> Offer:
    """The classes that an image-text model finds."""
    assert asked.tagger is not None, "the source `tags` needs a tagger"
    return Offer("", asked.tagger(sample.image), True)


WORD_SOURCES: dict[str, WordSource] = {
    "present": WordSource(present, True, "the classes that are present are taken from the ground truth of each image"),
    "caption": WordSource(named, True, "the classes that are looked for are those that each image's caption names"),
    "vocabulary": WordSource(every, False, "every class of the data set is looked for in every image"),
    "tags": WordSource(
        tagged, False, "the classes that are looked for are those that an image-text model finds in each image"
    ),
}


class TaggerError(GocaError, ValueError):
    """An image-text model cannot be loaded; the message says what is expected."""


@dataclass(frozen=True)
class TaggerConfig:
    """The fields of `tagger` in configs/config.yaml. Raises ConfigError.

    model      a folder or hub id of a CLIP model of transformers
    template   the prompt of a class, with {name} in it
    threshold  classes with at least this probability are found
    """

    model: Text = "openai/clip-vit-large-patch14"
    template: str = "a photo of a {name}"
    threshold: Annotated[float, Range(0, 1)] = 0.05

    def __post_init__(self) -> None:
        check_fields(self, ConfigError, "tagger")
        if self.template.count("{name}") != 1:
            raise ConfigError(f"tagger.template is {shown(self.template)}; expected a text with {{name}} in it, once")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> TaggerConfig:
        """From a mapping of fields; None: the defaults. Raises ConfigError."""
        values = {} if values is None else values
        check_names(cls, values, ConfigError, "tagger")
        return cls(**values)
