"""Turn a query into prompts: classes, then the background vocabulary, in as many prompts as necessary.

Every prompt holds the whole background vocabulary, which makes maps of different prompts comparable. Classes come
first, because a causal text encoder then encodes them independently of the vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from goca.open.query import Query
from goca.prompts.annotation import PromptAnnotation
from goca.prompts.grammar import Entity
from goca.prompts.learnt import LearntTokens
from goca.prompts.tokens import count_uncut, own_by_offsets, tokenise


@dataclass(frozen=True)
class Writer:
    """Writes a query's prompts for one model.

    tokenizers  as for goca.prompts.annotate
    background  the background vocabulary
    separator   text between two entities
    """

    tokenizers: Mapping[str, Any]
    background: Sequence[str]
    separator: str = ", "

    def prompts(self, query: Query) -> list[PromptAnnotation]:
        """As few prompts as possible for all classes, with about the same number of tokens in each.

        The background objects of an annotation are the query's context, then as many words of the background vocabulary
        as leave room for the longest class. A class whose names are too long for a prompt keeps the tokens that were
        not truncated, possibly none (`lost_classes` of its annotation).
        """
        shared = [Entity(word) for word in self.shared(query)]
        wanted = [Entity(self.separator.join(names), class_id) for class_id, names in query.classes]
        sizes = [self.size(entity) for entity in wanted]
        longest = wanted[max(range(len(wanted)), key=sizes.__getitem__)]
        shared = shared[: next((n for n in range(len(shared), 0, -1) if self.fits([longest, *shared[:n]])), 0)]
        for parts in range(1, len(wanted) + 1):
            dealt = deal(wanted, sizes, parts)
            if all(self.fits([*part, *shared]) for part in dealt):
                return [self.annotation([*part, *shared]) for part in dealt]
        return [self.annotation([entity, *shared]) for entity in wanted]

    def shared(self, query: Query) -> list[str]:
        """Background words: the query's context and the background vocabulary, without its classes."""
        classes = {name for _, names in query.classes for name in names}
        return [word for word in dict.fromkeys([*query.context, *self.background]) if word not in classes]

    def single(self, query: Query) -> list[str]:
        """One text for each class, then one for each background word."""
        return [self.separator.join(names) for _, names in query.classes] + self.shared(query)

    def annotation(self, entities: Sequence[Entity]) -> PromptAnnotation:
        """The entities as one prompt, and the tokens of each."""
        text, owned = self.own(entities)
        classes = {entity.class_id: tokens for entity, tokens in zip(entities, owned) if entity.class_id is not None}
        rest = [tokens for entity, tokens in zip(entities, owned) if entity.class_id is None and tokens]
        return PromptAnnotation(text, sorted(token for tokens in owned for token in tokens), classes, [], rest)

    def fits(self, entities: Sequence[Entity]) -> bool:
        """Whether no token of any entity is truncated."""
        owned = self.own(entities)[1]
        return all(len(tokens) == self.size(entity) for entity, tokens in zip(entities, owned))

    def size(self, entity: Entity) -> int:
        """The number of tokens of an entity on its own."""
        return len(self.own([entity])[1][0])

    def cuts(self, name: str) -> bool:
        """Whether the text encoders truncate a class's name."""
        tokenizers, lengths = self.read_by
        return len(tokenise(name, tokenizers, lengths)) < count_uncut(name, tokenizers, lengths)

    @property
    def read_by(self) -> tuple[list[Any], list[int | None]]:
        """The tokenizers whose tokens are attended to, and their lengths."""
        suffixes = [suffix for suffix in ("", "_2") if self.tokenizers.get(f"tokenizer{suffix}") is not None]
        lengths = [self.tokenizers.get(f"max_length{suffix}") for suffix in suffixes]
        return [self.tokenizers[f"tokenizer{suffix}"] for suffix in suffixes], lengths

    def own(self, entities: Sequence[Entity]) -> tuple[str, list[list[int]]]:
        """The text, and for each entity the positions of its tokens."""
        learnt = LearntTokens.of(**self.tokenizers)
        entities = [dataclasses.replace(entity, text=learnt.hide(entity.text)) for entity in entities]
        text = self.separator.join(entity.text for entity in entities)
        tokens = tokenise(text, *self.read_by, learnt)
        owned: list[list[int]] = [[] for _ in entities]
        for token, owner in zip(tokens, own_by_offsets(entities, text, tokens, self.separator)):
            if owner is not None:
                owned[owner].append(token.position)
        return learnt.show(text), owned


def deal(entities: Sequence[Entity], sizes: Sequence[int], parts: int) -> list[list[Entity]]:
    """Split entities, in order, into non-empty parts with about the same number of tokens."""
    total, dealt, done = sum(sizes), [[] for _ in range(parts)], 0  # type: ignore[var-annotated]
    for number, (entity, size) in enumerate(zip(entities, sizes)):
        even = parts * (done + size / 2) / total if total else 0
        part = int(max(min(even, number, parts - 1), parts - (len(entities) - number)))
        dealt[part].append(entity)
        done += size
    return [part for part in dealt if part]
