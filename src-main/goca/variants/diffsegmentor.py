"""The baseline DiffSegmentor: every class has a forward of its own, with its name at the head of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from diffusion_feature import Attention, FeatureExtractor, read_image
from torch import Tensor

from goca.config import ConfigError, SegmenterConfig
from goca.method.augmentation import views
from goca.method.rescaling import min_max
from goca.method.resizing import Grid
from goca.prompts import PromptAnnotation
from goca.prompts.tokens import Token, tokenise
from goca.refine import affinity
from goca.segmenter import Picture, Segmenter, name_of

WEIGHTS = {8: 0.3, 4: 0.5, 2: 0.1, 1: 0.1}  # how much coarser than the grid -> weight; SD 1.5: 8, 16, 32, 64 of 64


class DiffSegmentor(Segmenter):
    """`DiffSegmentor.from_pretrained(None, "diffsegmentor")("photo.jpg", "cat, grass")`

    Per class one forward with "a photograph of CLASS, CAPTION" (the config's class_prompt), all of a picture in one
    batch (see `max_bytes`). The cross maps of the class's name, averaged over heads and over the layers of each
    resolution, brought to 0..1, resized to the grid and weighed by resolution (WEIGHTS; over those that the model has
    they are brought to sum 1); one step along the head-mean self-attention of the grid's own resolution; 0..1 again.
    There is no background map: it is 0.

    class_names   what classes are called, by id; where there is none, the words of the annotation's own tokens
    """

    method = "diffsegmentor"
    finds_words = False

    def __init__(self, extractor: FeatureExtractor, config: SegmenterConfig, max_bytes: int | None = None):
        super().__init__(extractor, config, max_bytes)
        if len(views(config)) > 1:
            raise ConfigError("diffsegmentor takes one look at a picture: leave flips, draws and timesteps as they are")
        self.class_names: Mapping[int, str] = MappingProxyType({})

    def captures(  # type: ignore[override]
        self,
        images: Sequence[Picture],
        annotations: Sequence[PromptAnnotation],
        noises: Sequence[Tensor | None] | None = None,
        image_ids: Sequence[str | None] | None = None,
    ) -> Iterator[tuple[ClassMaps, int]]:
        """For each picture the maps of all its classes, which lie in one capture; the number says nothing."""
        noises = [None] * len(images) if noises is None else noises
        ids = [None] * len(images) if image_ids is None else image_ids
        for image, annotation, noise, image_id in zip(images, annotations, noises, ids, strict=True):
            yield self.capture(image, annotation, noise, image_id), 0

    def capture(self, image, annotation, noise=None, image_id=None, head_rules=(), layer_rules=()) -> ClassMaps:  # type: ignore[override]
        """As many classes in one forward as `max_bytes` admits. The rules say nothing here."""
        noise = None if noise is None else noise.reshape(1, *noise.shape[-3:])
        image, image_id = read_image(image).stored, name_of(image, image_id)
        prompts = [self.prompt(name, annotation.caption) for name in self.names(annotation)]
        maps: list[Tensor] = []
        while len(maps) < len(prompts):
            part = prompts[len(maps) :][: self.admitted(len(prompts) - len(maps))]
            n = len(part)
            consumer = ClassMaps(self.blocks, self.space_blocks, self.config.grid, [tokens for _, tokens in part])
            texts = [PromptAnnotation(prompt) for prompt, _ in part]
            self.forward([image] * n, texts, consumer, [noise] * n, [image_id] * n)
            self.taken = max(self.taken, -(-consumer.peak_bytes // n))
            self.admitted(1)
            maps += consumer.maps()
        return ClassMaps.of(maps)

    def scores(  # type: ignore[override]
        self, capture: ClassMaps, number: int, annotation: PromptAnnotation, picture: Picture | None = None
    ) -> Tensor:
        """Class maps, and a background map of zeros   [classes + 1, g, g]"""
        return self.refine(self.with_background(capture), capture, number, picture)  # type: ignore[arg-type]

    @torch.no_grad()
    def score_maps(
        self, image: Picture, annotation: PromptAnnotation, noise: Tensor | None = None, image_id: str | None = None
    ) -> Tensor:
        """The same before `refine`."""
        return self.with_background(self.capture(image, annotation, noise, image_id))

    def with_background(self, capture: ClassMaps) -> Tensor:
        return torch.stack([*capture.found, torch.zeros(self.config.grid, device=self.extractor.device)])

    def names(self, annotation: PromptAnnotation) -> list[str]:
        """What each class of the annotation is called. Raises ConfigError where nothing says it."""
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
        given: dict[str, Any] = self.extractor.backbone.tokenizers(self.extractor.parts)
        suffixes = [suffix for suffix in ("", "_2") if given.get(f"tokenizer{suffix}") is not None]
        lengths = [given.get(f"max_length{suffix}") for suffix in suffixes]
        return tokenise(prompt, [given[f"tokenizer{suffix}"] for suffix in suffixes], lengths)


def first_words(text: str, tokens: Sequence[Token]) -> str:
    """What the first tokens spell that follow each other without anything between."""
    start, end = tokens[0].span
    for token in tokens[1:]:
        if text[end : token.span[0]].strip() or token.span[0] < end:
            break
        end = token.span[1]
    return text[start:end]


@dataclass
class ClassMaps:
    """A consumer of one forward with a prompt per class; or the finished maps of several.

    tokens   the class's positions in each prompt
    found    finished maps [g, g], one per class
    """

    blocks: Sequence[str]
    space_blocks: Sequence[str]
    grid: Grid
    tokens: Sequence[Sequence[int]]
    cross: dict[Grid, list[Tensor]] = field(default_factory=dict)  # grid -> a map per layer   [B, S]
    own: list[Tensor] = field(default_factory=list)  # head-mean self maps on the grid, summed   [B, S, S]
    layers: int = 0  # in that sum
    found: list[Tensor] = field(default_factory=list)
    features: tuple[str, ...] = ()
    peak_bytes: int = 0
    space: Tensor | None = None  # nothing that a later step could look at
    dense: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: list[Tensor]) -> ClassMaps:
        return cls((), (), (0, 0), (), found=maps)

    def attention(self, attention: Attention) -> None:
        block, working = attention.layer.block, 0
        if attention.text_keys is not None and block in self.blocks:
            maps = attention.map("cross").mean(1)  # [B, S, N]
            own = torch.stack([each[:, list(tokens)].mean(-1) for each, tokens in zip(maps, self.tokens, strict=True)])
            self.cross.setdefault(attention.grid, []).append(own)
            working = maps.nbytes * (attention.heads + 1)
        if attention.image_keys is not None and block in self.space_blocks and attention.grid == self.grid:
            mean = attention.head_mean()
            self.own, self.layers = [self.own[0].add_(mean) if self.own else mean], self.layers + 1
            working = max(working, 2 * mean.nbytes)
        held = [*self.own, *(each for maps in self.cross.values() for each in maps)]
        self.peak_bytes = max(self.peak_bytes, sum(each.nbytes for each in held) + working)

    def feature(self, layer: str, feature: Tensor) -> None: ...

    def maps(self) -> list[Tensor]:
        """One per prompt   [g, g] in 0..1. Raises ConfigError where no self map lies on the grid."""
        known = {grid: WEIGHTS[self.grid[0] // grid[0]] for grid in self.cross if self.grid[0] // grid[0] in WEIGHTS}
        if not self.own or not known:
            seen = ", ".join(f"{h} x {w}" for h, w in sorted(self.cross))
            raise ConfigError(
                f"diffsegmentor: feat_size={self.grid[0]} needs cross maps of the grid's size, half, a quarter or an "
                f"eighth, and a self map of the grid's own; the cross maps seen are {seen}"
            )
        total = torch.zeros(())
        for grid, weight in known.items():
            maps = min_max(torch.stack(self.cross[grid]).mean(0).unflatten(1, grid))  # [B, h, w]
            resized = F.interpolate(maps[None], size=self.grid, mode="bilinear", align_corners=False)[0]
            total = total.to(resized) + weight / sum(known.values()) * resized
        space = self.own[0] / self.layers  # [B, g*g, g*g]
        return [affinity(each[None], S, 1)[0] for each, S in zip(total, space, strict=True)]
