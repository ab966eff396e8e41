"""Compute every number of the figure from one forward pass: the content of the .npz file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusion_feature.errors import layer_not_found
from goca.errors import GocaError
from goca.files.atomic import write_arrays
from goca.method.aggregation import Aggregator
from goca.method.rescaling import rescale
from goca.prompts import PromptAnnotation
from goca.prompts.positions import positions_in_text
from goca.prompts.words import PromptWords
from goca.requests import Request
from goca.segmentation import BACKGROUND
from goca.segmenter import Segmenter
from PIL import Image
from torch import Tensor

from observation.recorder import Recorder

Numbers = dict[str, np.ndarray]
Pixel = tuple[int, int]


class PixelOutside(GocaError, ValueError):
    """A pixel lies outside the image."""


class TokenOutside(GocaError, ValueError):
    """A token position lies outside the prompt."""


class HeadNotFound(GocaError, ValueError):
    """The layer does not have this head."""


@torch.no_grad()
def observe(
    segmenter: Segmenter,
    image: Image.Image,
    prompt: str,
    words: Sequence[str] = (),
    pixels: Sequence[Pixel] = (),
    layer: str | None = None,
    head: int | None = None,
    image_id: str | None = None,
    content: Sequence[str] = (),
) -> Numbers:
    """Compute every stage of some words' scores; docs/observation.md explains the keys.

    words    class names of the prompt, or single words of it; empty: its classes
    pixels   (x, y) in the image; empty: the maximum of each word's score
    layer    a block, or its cross map's id; None: the one with the largest weight
    head     None: the layer's head with the largest mean weight
    content  words or token positions whose sum rescaling divides by; empty: all content words
    Raises WordNotFound, PixelOutside, LayerNotFound, HeadNotFound, and the errors of Segmenter.
    """
    annotation, names = segmenter.read_prompt(prompt)
    rows = find_words(segmenter, annotation, names, words)
    if content:
        annotation = dataclasses.replace(annotation, rescaling_token_id=content_tokens(segmenter, annotation, content))
    check_pixels(pixels, image)
    block = None if layer is None else find_layer(segmenter, layer)
    recorder = Recorder(Aggregator(segmenter.plan()), list(rows.values()))
    segmenter.forward([Request(image, annotation, image_id=image_id)], recorder)
    weights = recorder.aggregator.layer_weights(segmenter.config.layer_method)[0]
    block = segmenter.blocks[int(weights.argmax())] if block is None else block
    found = {
        "image": image.convert("RGB"),
        "prompt": annotation.caption,
        "settings": json.dumps(segmenter.config.to_dict(), default=str),
        "words": list(rows),
        "word_tokens": padded(list(rows.values())),
        "layers": segmenter.blocks,
        "layer_weights": weights,
        **of_layer(recorder, block, head),
        **of_scores(segmenter, recorder.aggregator, annotation, names, rows, image, bool(content)),
    }
    found["pixels"] = list(pixels) or peaks(found["refined"], image.size)
    return plain(found | of_pixels(found, image.size))


def find_words(
    segmenter: Segmenter, annotation: PromptAnnotation, names: Mapping[int, str], words: Sequence[str]
) -> dict[str, list[int]]:
    """Word -> its tokens."""
    classes = {name: annotation.existent_objects[class_id] for class_id, name in names.items()}
    extractor = segmenter.extractor
    known = PromptWords(annotation.caption, **extractor.backbone.tokenizers(extractor.parts))
    wanted = [" ".join(word.lower().split()) for word in words] or list(classes)
    return {word: classes.get(word) or known.positions(word) for word in wanted}


def content_tokens(segmenter: Segmenter, annotation: PromptAnnotation, content: Sequence[str]) -> list[int]:
    """Return the positions of named tokens, ascending; a number is a position.

    Raises WordNotFound, TokenOutside.
    """
    extractor = segmenter.extractor
    known = PromptWords(annotation.caption, **extractor.backbone.tokenizers(extractor.parts))
    found = {token for each in content for token in ([int(each)] if each.isdigit() else known.positions(each.lower()))}
    length = len(known.tokens)
    if beyond := [token for token in sorted(found) if token >= length]:
        raise TokenOutside(f"token {beyond[0]} is not in the prompt: its tokens are numbered from 0 to {length - 1}")
    return sorted(found)


def check_pixels(pixels: Sequence[Pixel], image: Image.Image) -> None:
    for x, y in pixels:
        if not (0 <= x < image.width and 0 <= y < image.height):
            raise PixelOutside(
                f"pixel {x},{y} is outside the image: x goes from 0 to {image.width - 1}, "
                f"y from 0 to {image.height - 1}"
            )


def find_layer(segmenter: Segmenter, layer: str) -> str:
    block = layer.removesuffix("-cross-map")
    if block not in segmenter.blocks:
        raise layer_not_found(layer, [f"{each}-cross-map" for each in segmenter.blocks], segmenter.extractor.where)
    return block


def of_layer(recorder: Recorder, block: str, head: int | None) -> dict[str, Any]:
    layer = recorder.layers[block]
    means, count = layer.weights.mean((1, 2)), len(layer.heads)
    if head is not None and not 0 <= head < count:
        raise HeadNotFound(f"head {head} is not in {block}: it has {count}, counted from 0")
    head = int(means.argmax()) if head is None else head
    return {
        "layer": block,
        "head": head,
        "head_weights": layer.weights,
        "head_weight_means": means,
        "one_head": layer.heads[head],
        "one_layer": layer.heads.mean(0),
        "heads_aggregated": layer.aggregated(),
    }


def of_scores(
    segmenter: Segmenter,
    capture: Aggregator,
    annotation: PromptAnnotation,
    names: Mapping[int, str],
    rows: Mapping[str, Sequence[int]],
    image: Image.Image,
    by_hand: bool = False,
) -> dict[str, Any]:
    """`by_hand`: rescale by the annotation's own content words only, even if a shown word is not one of them."""
    attention = capture.attention_map()[0]  # [g, g, N]
    tokens = [positions_in_text(each, attention.shape[-1]) for each in rows.values()]
    shown = () if by_hand else tokens
    content = positions_in_text(sorted({*annotation.rescaling_token_id}.union(*shown)), attention.shape[-1])
    rescaled = rescale(attention, tokens, content, segmenter.config.rescale_method, segmenter.config.token_method)
    maps = segmenter.rescale(attention, annotation)  # [n, g, g], the background last
    scores = segmenter.refine(maps, capture, 0, image)
    classes = list(annotation.existent_objects.values())
    refined, wins = [], []
    for number, own in enumerate(rows.values()):
        if own in classes:
            score = scores[classes.index(own)]
        else:  # a word that is not a class is refined together with the classes
            beside = torch.cat([maps[:-1], rescaled[number : number + 1], maps[-1:]])
            score = segmenter.refine(beside, capture, 0, image)[-2]
        others = [map for at, map in enumerate(scores) if at >= len(classes) or not set(own) & set(classes[at])]
        refined.append(score)
        wins.append(score > torch.stack(others).amax(0))
    segmentation = segmenter.segmentation(scores, annotation, names, image)
    aggregated = torch.stack([attention[..., each].mean(-1) for each in tokens])
    return {
        "layers_aggregated": aggregated,
        "ranking": ranking(aggregated),
        "rescaled": rescaled,
        "refined": torch.stack(refined),
        "wins": torch.stack(wins),
        "class_ids": segmentation.class_ids,
        "class_names": segmentation.names,
        "scores": scores,
        "label_map": segmentation.label_map(),
    }


def ranking(maps: Tensor) -> Tensor:
    """Rank the words at each pixel: 1 for the most attention; equal values share the better rank.

    maps [K, g, g] -> int [K, g, g]
    """
    return 1 + (maps[None] > maps[:, None]).sum(1)


def of_pixels(found: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    at = [(y, x) for x, y in found["pixels"]]
    values = {
        "pixel_attention": resized(found["layers_aggregated"], size),
        "pixel_scores": resized(found["refined"], size),
    }
    names = dict(zip(found["class_ids"], found["class_names"])) | {BACKGROUND: "background"}
    winners = [names[int(found["label_map"][place])] for place in at]
    return {name: torch.stack([maps[:, y, x] for y, x in at]) for name, maps in values.items()} | {
        "pixel_classes": winners
    }


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps [K, g, g] to (width, height) as for the decision   [K, H, W]"""
    return F.interpolate(maps[None].float(), size=size[::-1], mode="bilinear", align_corners=False)[0]


def peaks(refined: Tensor, size: tuple[int, int]) -> list[Pixel]:
    """Return the maximum of each word's score, as (x, y)."""
    places = resized(refined, size).flatten(1).nan_to_num(-torch.inf).argmax(1).tolist()
    return [(place % size[0], place // size[0]) for place in places]


def padded(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Stack lists as rows, padded with -1."""
    longest = max(map(len, lists))
    return np.array([[*each, *[-1] * (longest - len(each))] for each in lists])


def plain(values: Mapping[str, Any]) -> Numbers:
    return {name: np.asarray(value.cpu() if torch.is_tensor(value) else value) for name, value in values.items()}


def save_numbers(path: str | os.PathLike[str], settings: Mapping[str, Numbers]) -> Path:
    """Write the .npz file: the first setting's numbers by name, those of a second one as `NAME.key`."""
    path, flat = Path(path), {}
    for number, (setting, numbers) in enumerate(settings.items()):
        flat |= {f"{setting}.{key}" if number else key: value for key, value in numbers.items()}
    write_arrays(path, flat)
    return path
