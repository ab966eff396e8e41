"""Check an annotation's token positions against the text that the encoder reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from goca.prompts.annotation import PromptAnnotation


class EmptyClass(UserWarning):
    """A class has no token in the text: its words were cut off or not found."""


class PositionsBeyond(UserWarning):
    """An annotation names token positions beyond the text that the encoder reads."""


def positions_in_text(positions: Iterable[int], length: int) -> list[int]:
    """Return the positions that exist in a text of `length` tokens."""
    return [position for position in positions if 0 <= position < length]


def warn_of_positions(annotation: PromptAnnotation, length: int) -> None:
    """Warn of positions beyond the text (PositionsBeyond); classes without a token get their own warning."""
    classes = [own for own in annotation.existent_objects.values() if positions_in_text(own, length)]
    fields = {
        "rescaling_token_id": [annotation.rescaling_token_id],
        "existent_objects": classes,
        "background_objects": annotation.background_objects,
    }
    for name, lists in fields.items():
        if beyond := sorted({position for positions in lists for position in positions if position >= length}):
            shown = ", ".join(map(str, beyond[:5])) + ", ..." * (len(beyond) > 5)
            warnings.warn(
                f"{name} names the positions {shown}; the text encoder reads {length} tokens of"
                f" {annotation.caption!r}, so they are ignored",
                PositionsBeyond,
                stacklevel=4,
            )


def zero_empty(maps: Tensor, entities: Sequence[Sequence[int]], annotation: PromptAnnotation) -> Tensor:
    """Set the maps of entities without a token to 0; warn (EmptyClass) if one is a class.

    maps      one per entity, the annotation's classes first   [n, g, g]
    entities  token positions of each
    """
    if all(entities):
        return maps
    for class_id, positions in zip(annotation.existent_objects, entities):
        if not positions:
            warnings.warn(
                f"class {class_id} has no token left in {annotation.caption!r}, so it scores 0 everywhere: its "
                "words were cut off or not found. Shorten the caption, or move its words to the front.",
                EmptyClass,
                stacklevel=4,
            )
    empty = torch.tensor([not positions for positions in entities], device=maps.device)
    return maps.masked_fill(empty[:, None, None], 0)
