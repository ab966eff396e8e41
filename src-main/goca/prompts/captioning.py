"""From a caption to a PromptAnnotation: entities, then tokens, then the entity of each token."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from goca.protocol import Protocol
from goca.schema import shown

from .annotation import AnnotationError, PromptAnnotation, check_image_name, read_json_object
from .grammar import GRAMMARS, CaptionError, Entity, Request
from .learnt import LearntTokens
from .tokens import SPANS, Token, as_read, tokenise


def annotate(
    caption: str,
    class_names: Sequence[Sequence[str]],
    present: Iterable[int],
    tokenizer: Any,
    *,
    tokenizer_2: Any = None,
    max_length: int | None = None,
    max_length_2: int | None = None,
    add_background: bool,
    add_missing: bool,
    protocol: str | Mapping[str, str] | Protocol = "paper",
) -> PromptAnnotation:
    """Find the tokens of a caption that name each class, and those of background entities.

    class_names   class id -> names that stand for it, lower case, the main one first; id 0 is background
    present       ids of the classes in the image; only these are named
    tokenizer(s)  CLIP, T5, BERT + T5 (HunyuanDiT); CLIP + CLIP counts as CLIP (SDXL), CLIP + T5 as T5 (Flux)
    max_length    tokens kept by each tokenizer; None: the tokenizer's own limit. Classes whose words are cut off stay
                  in the annotation with an empty list; see PromptAnnotation.lost_classes()
    add_background, add_missing   append "background"; append the present classes that the caption does not name
    protocol      its switches caption_grammar and token_spans decide how brackets are read and tokens assigned
    Raises CaptionError for a caption that is not a text, a class id without a name, or unknown tokenizers.

    >>> from goca.embedded import resolve
    >>> from goca.prompts import load_tokenizers
    >>> tokenizers = load_tokenizers(resolve("goca:mini-sd"))
    >>> names = [[], ["star"], ["house"]]
    >>> found = annotate("a star, (house, roof)", names, [1, 2], **tokenizers, add_background=False, add_missing=False)
    >>> found.caption, found.existent_objects
    ('a star, house, roof', {1: [2], 2: [4, 6]})
    """
    switches = Protocol.of(protocol)
    tokenizers = [tokenizer] if tokenizer_2 is None else [tokenizer, tokenizer_2]
    learnt = LearntTokens(tokenizers)
    request = _request(caption, class_names, present, add_background, add_missing, learnt)
    entities = GRAMMARS[switches.caption_grammar](request)
    prompt = ", ".join(entity.text for entity in entities)
    spans = SPANS[switches.token_spans]
    read = as_read(prompt, tokenizers, switches.token_spans)
    tokens = tokenise(read, tokenizers, [max_length, max_length_2], learnt)
    return _collect(learnt.show(prompt), entities, tokens, spans.own(entities, prompt, tokens), spans.order)


def _request(
    caption: str,
    class_names: Sequence[Sequence[str]],
    present: Iterable[int],
    background: bool,
    missing: bool,
    learnt: LearntTokens,
) -> Request:
    if not isinstance(caption, str):
        raise CaptionError(f"expected a text as caption; found {caption!r}")
    if wrong := [names for names in class_names if isinstance(names, str)]:
        raise CaptionError(f"class_names holds the text {wrong[0]!r}; each class has a list of names: [{wrong[0]!r}]")
    present = [int(class_id) for class_id in present]
    if unknown := [class_id for class_id in present if not 0 <= class_id < len(class_names)]:
        raise CaptionError(f"class {unknown[0]} is present, but the classes are 0 to {len(class_names) - 1}")
    whole = caption.encode("utf-8", "replace").decode("utf-8")  # tokenizers cannot encode half a surrogate pair
    hidden, ids = learnt.hide(whole, any_case=True), [class_id for class_id in dict.fromkeys(present) if class_id]
    names = [[learnt.hide(name, any_case=True) for name in each] for each in class_names]
    return Request(hidden, names, ids, background, missing)


def _collect(
    prompt: str,
    entities: Sequence[Entity],
    tokens: Sequence[Token],
    owners: Sequence[int | None],
    order: Callable[[list[int]], list[int]],
) -> PromptAnnotation:
    owned: list[list[int]] = [[] for _ in entities]
    for token, owner in zip(tokens, owners):
        if owner is not None:
            owned[owner].append(token.position)
    objects: dict[int, list[int]] = {}
    for entity, positions in zip(entities, owned):
        if entity.class_id is not None:
            objects[entity.class_id] = objects.get(entity.class_id, []) + positions
    background = [found for entity, found in zip(entities, owned) if entity.class_id is None and found]
    return PromptAnnotation(
        caption=prompt,
        rescaling_token_id=[token.position for token, owner in zip(tokens, owners) if owner is not None],
        existent_objects={class_id: order(positions) for class_id, positions in objects.items()},
        global_token_id=[token.position for token in tokens if token.kind == "global"],
        background_objects=sorted(background, key=lambda positions: positions[0]),
    )


def read_captions(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read a captions file, image file name -> {"caption": ...}: the captions, and the reason for each refused image.

    Raises AnnotationError if the file is missing, incomplete, not a JSON object, or has duplicate keys.
    """
    captions: dict[str, str] = {}
    refused: dict[str, str] = {}
    for image, record in read_json_object(path, "captions").items():
        try:
            check_image_name(image)
        except AnnotationError as error:
            refused[image] = str(error)
            continue
        caption = record.get("caption") if isinstance(record, dict) else None
        if isinstance(caption, str):
            captions[image] = caption
        else:
            refused[image] = f'expected {{"caption": text}}; found {shown(record)}'
    return captions, refused
