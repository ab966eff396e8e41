"""What a run looks for in each sample: prompts for ask=complete, queries for ask=open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from goca.benchmark.inputs import Captions
from goca.benchmark.word_sources import Asked, Offer, WordSource
from goca.datasets import Sample, SampleError
from goca.open import Query
from goca.open.query import clean
from goca.prompts import AnnotationError, CaptionError, Entity, PromptAnnotation
from goca.prompts.grammar import GRAMMARS, Request
from goca.protocol import Protocol


class WordPrompts:
    """What a run looks for in each sample, by one of the sources of words.

    captions  the labels file, where the source reads captions
    protocol  its switch caption_grammar says how brackets are read
    """

    def __init__(self, source: WordSource, asked: Asked, captions: Captions | None, protocol: Protocol) -> None:
        self.source, self.asked, self.captions, self.protocol = source, asked, captions, protocol

    def offer(self, sample: Sample) -> Offer:
        """Raises SampleError for a sample without a caption, where one is needed."""
        caption = "" if self.captions is None else self.captions.caption(sample)
        return self.source.offer(self.asked, sample, caption)

    def text(self, name: str) -> str | None:
        """What of an image's prompt is read from a file; None where nothing is."""
        return None if self.captions is None else self.captions.text(name)

    def annotated(self, annotate: Callable[[Offer], PromptAnnotation]) -> Callable[[Sample], PromptAnnotation]:
        """Sample -> the prompt that names all that is offered, for ask=complete. It raises SampleError where none fits.

        annotate  offer -> annotation, with a model's tokenizers
        """

        def prompt(sample: Sample) -> PromptAnnotation:
            with for_sample(sample):
                return annotate(self.offer(sample))

        return prompt

    def query(self, sample: Sample) -> Query | None:
        """For ask=open: the offered classes by their words, and the caption's other words; None: no class is offered.

        Raises SampleError where the caption cannot be read.
        """
        offer, names = self.offer(sample), self.asked.class_names
        with for_sample(sample):
            request = Request(offer.caption, names, offer.class_ids, False, offer.add_missing)
            return as_query(GRAMMARS[self.protocol.caption_grammar](request))


@contextmanager
def for_sample(sample: Sample) -> Iterator[None]:
    """What is wrong with a caption, as a reason to skip the sample."""
    try:
        yield
    except (AnnotationError, CaptionError) as error:
        raise SampleError(f"caption of {sample.name}: {error}") from error


def as_query(entities: Iterable[Entity]) -> Query | None:
    """Entities as a query: every name for the first class that has it, names of no class as its context."""
    classes: dict[int, list[str]] = {}
    context: list[str] = []
    taken: set[str] = set()
    for entity in entities:
        names = [clean(name) for name in entity.text.split(", ")]
        if entity.class_id is None:
            context += names
        elif own := [name for name in dict.fromkeys(names) if name and name not in taken]:
            classes.setdefault(entity.class_id, []).extend(own)
            taken |= set(own)
    return Query.of(classes, context) if classes else None
