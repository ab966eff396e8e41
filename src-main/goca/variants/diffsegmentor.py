"""The baseline DiffSegmentor: one forward pass per class, whose prompt starts with the class's name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from diffusion_feature import Attention, FeatureExtractor
from torch import Tensor

from goca.config import ConfigError, SegmenterConfig
from goca.method.augmentation import augmentations
from goca.method.rescaling import min_max
from goca.method.resizing import Grid
from goca.prompts import PromptAnnotation
from goca.prompts.tokens import Token, tokenise
from goca.refine import affinity
from goca.requests import ImageLike, Request, load_images
from goca.segmentation_model import SegmentationModel

WEIGHTS = {8: 0.3, 4: 0.5, 2: 0.1, 1: 0.1}  # grid size / map size -> weight; SD 1.5 has maps of 8, 16, 32, 64 on 64


class DiffSegmentor(SegmentationModel):
    """`DiffSegmentor.from_pretrained(None, "diffsegmentor")("photo.jpg", "cat, grass")`

    Each class has its own prompt, "a photograph of CLASS, CAPTION" (the config's class_prompt); all prompts of an
    image form one batch (see `max_bytes`). The cross maps of the class's name are averaged over heads and over the
    layers of each resolution, scaled to 0..1, resized to the grid and averaged by WEIGHTS, normalised over the
    resolutions that the model has. One step along the head-mean self-attention of the grid's own resolution, then
    0..1 again. The background map is 0.
    """

    method = "diffsegmentor"

    def __init__(self, extractor: FeatureExtractor, config: SegmenterConfig, max_bytes: int | None = None):
        super().__init__(extractor, config, max_bytes)
        if len(augmentations(config)) > 1:
            raise ConfigError("diffsegmentor has no test-time augmentation: leave flips, draws and timesteps unset")
        self.class_names: Mapping[int, str] = MappingProxyType({})

    def use_class_names(self, names: Mapping[int, str]) -> None:
        """Class id -> name in the class's prompt; without one, it is the words of the annotation's tokens."""
        self.class_names = MappingProxyType(dict(names))

    def scores(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Class maps, and a background map of zeros, refined   [classes + 1, g, g]"""
        for request in requests:
            yield self.refine(self.class_maps(request), None, image=request.image)

    @torch.no_grad()
    def score_maps(
        self, image: ImageLike, annotation: PromptAnnotation, noise: Tensor | None = None, image_id: str | None = None
    ) -> Tensor:
        """The maps of `scores` before refinement."""
        return self.class_maps(Request(image, annotation, noise, image_id))

    def class_maps(self, request: Request) -> Tensor:
        """One map per class in 0..1, then zeros   [classes + 1, g, g]"""
        (loaded,) = load_images([request])
        caption = request.annotation.caption
        prompts = [self.prompt(name, caption) for name in self.names(request.annotation)]
        maps: list[Tensor] = []
        while len(maps) < len(prompts):
            batch = prompts[len(maps) :][: self.budget.next_batch(len(prompts) - len(maps))]
            collector = ClassMapCollector(
                self.blocks, self.space_blocks, self.config.grid, [positions for _, positions in batch]
            )
            self.forward(
                [dataclasses.replace(loaded, annotation=PromptAnnotation(text)) for text, _ in batch], collector
            )
            self.budget.observe(collector.peak_bytes, len(batch))
            maps += collector.maps()
        return torch.stack([*maps, torch.zeros(self.config.grid, device=self.extractor.device)])

    def names(self, annotation: PromptAnnotation) -> list[str]:
        """The name of each class of the annotation. Raises ConfigError for a class without any."""
        tokens = {token.position: token for token in self.tokenised(annotation.caption)}
        names = []
        for class_id, positions in annotation.existent_objects.items():
            own = [tokens[position] for position in positions if position in tokens]
            if class_id not in self.class_names and not own:
                raise ConfigError(f"class {class_id} has neither a name nor a word in {annotation.caption!r}")
            names.append(self.class_names.get(class_id) or first_words(annotation.caption, own))
        return names

    def prompt(self, name: str, caption: str) -> tuple[str, list[int]]:
        """The prompt of one class, and the positions of the name's tokens in it."""
        before, after = self.config.class_prompt.split("{name}")
        text = before + name + after.replace("{caption}", caption)
        start, end = len(before), len(before) + len(name)
        return text, [
            token.position
            for token in self.tokenised(text)
            if token.kind == "word" and token.span[0] < end and token.span[1] > start
        ]

    def tokenised(self, prompt: str) -> list[Token]:
        """The tokens of a prompt, as the model's text encoders read it."""
        tokenizers: dict[str, Any] = self.extractor.backbone.tokenizers(self.extractor.parts)
        suffixes = [suffix for suffix in ("", "_2") if tokenizers.get(f"tokenizer{suffix}") is not None]
        lengths = [tokenizers.get(f"max_length{suffix}") for suffix in suffixes]
        return tokenise(prompt, [tokenizers[f"tokenizer{suffix}"] for suffix in suffixes], lengths)


def first_words(text: str, tokens: Sequence[Token]) -> str:
    """The text of the first tokens, up to the first one that does not follow directly."""
    start, end = tokens[0].span
    for token in tokens[1:]:
        if text[end : token.span[0]].strip() or token.span[0] < end:
            break
        end = token.span[1]
    return text[start:end]


@dataclass
class ClassMapCollector:
    """Collects the maps of a forward pass with one prompt per class (a consumer, see diffusion_feature.tap).

    positions   the class's token positions in each prompt
    peak_bytes  the most memory that it held at once
    """

    blocks: Sequence[str]
    space_blocks: Sequence[str]
    grid: Grid
    positions: Sequence[Sequence[int]]
    cross_maps: dict[Grid, list[Tensor]] = field(default_factory=dict)  # grid -> one map per layer   [B, S]
    self_sum: Tensor | None = None  # head-mean self maps on the grid, summed over layers   [B, S, S]
    self_layers: int = 0  # layers in that sum
    features: tuple[str, ...] = ()
    peak_bytes: int = 0

    def attention(self, attention: Attention) -> None:
        block, working = attention.layer.block, 0
        if attention.text_keys is not None and block in self.blocks:
            maps = attention.map("cross").mean(1)  # [B, S, N]
            own = [each[:, list(positions)].mean(-1) for each, positions in zip(maps, self.positions, strict=True)]
            self.cross_maps.setdefault(attention.grid, []).append(torch.stack(own))
            working = maps.nbytes * (attention.heads + 1)
        if attention.image_keys is not None and block in self.space_blocks and attention.grid == self.grid:
            mean = attention.head_mean()
            self.self_sum = mean if self.self_sum is None else self.self_sum.add_(mean)
            self.self_layers += 1
            working = max(working, 2 * mean.nbytes)
        held = [each for maps in self.cross_maps.values() for each in maps]
        held += [] if self.self_sum is None else [self.self_sum]
        self.peak_bytes = max(self.peak_bytes, sum(each.nbytes for each in held) + working)

    def feature(self, layer: str, feature: Tensor) -> None:
        """No features are collected."""

    def maps(self) -> list[Tensor]:
        """One map per prompt   [g, g] in 0..1. Raises ConfigError if no self map has the grid's resolution."""
        known = {
            grid: WEIGHTS[self.grid[0] // grid[0]] for grid in self.cross_maps if self.grid[0] // grid[0] in WEIGHTS
        }
        if self.self_sum is None or not known:
            seen = ", ".join(f"{h} x {w}" for h, w in sorted(self.cross_maps))
            raise ConfigError(
                f"diffsegmentor: feat_size={self.grid[0]} needs cross maps of the grid's size, half, a quarter or an "
                f"eighth, and a self map of the grid's own; the cross maps seen are {seen}"
            )
        total = torch.zeros(())
        for grid, weight in known.items():
            maps = min_max(torch.stack(self.cross_maps[grid]).mean(0).unflatten(1, grid))  # [B, h, w]
            resized = F.interpolate(maps[None], size=self.grid, mode="bilinear", align_corners=False)[0]
            total = total.to(resized) + weight / sum(known.values()) * resized
        space = self.self_sum / self.self_layers  # [B, g*g, g*g]
        return [affinity(each[None], S, 1)[0] for each, S in zip(total, space, strict=True)]
