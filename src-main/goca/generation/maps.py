"""`TextMaps`: maps of the words of one text in a generated image, for the prompt and for further texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusion_feature import ExtractorError
from diffusion_feature.chat import PromptReader
from torch import Tensor

from goca.generation.adapters import PipelineLayers
from goca.generation.averages import StepAverage, TraceError, WordMap
from goca.method.rescaling import divide, rescale
from goca.prompts.positions import positions_in_text
from goca.prompts.words import PromptWords
from goca.segmentation import BACKGROUND, Segmentation
from goca.segmenter import Segmenter

if TYPE_CHECKING:
    from goca.generation.further import FurtherWords


class TextMaps(ABC):
    """Word maps of one text per image, averaged over the steps of a generation.

    prompts   the texts, one per image
    capture   their attention
    images    the generated images, if they are known
    beyond    further words, whose tokens follow those of the text
    mixed     whether two encoders that share token positions were given different texts
    """

    beyond: FurtherWords | None = None
    mixed: bool = False

    segmenter: Segmenter
    layers: PipelineLayers
    prompts: list[str]
    capture: StepAverage
    images: list[Any]

    @abstractmethod
    def refuse(self) -> None:
        """Raise TraceError if there are no maps."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""

    def attention(self, image: int = 0) -> Tensor:
        """Mean over the steps, heads and layers aggregated; sums to 1 over tokens   [g, g, N]"""
        self.refuse()
        if not 0 <= image < (count := len(maps := self.capture.attention_map())):
            raise TraceError(f"image {image} is not among the {count} generated images, counted from 0")
        return maps[image]

    def words(self, image: int = 0) -> list[str]:
        """The content words of the text."""
        return list(self.prompt_words(image).content)

    def word(self, word: str, image: int = 0) -> WordMap:
        """The map of a word, or of several in a row: mean over their tokens. Raises WordNotFound, TraceError."""
        attention, words = self.attention(image), self.prompt_words(image)
        length = attention.shape[-1]
        tokens = positions_in_text(words.positions(word), length)
        content = positions_in_text(sorted({*words.content_tokens, *tokens}), length)
        shown = rescale(attention, [tokens], content, self.segmenter.config.rescale_method)[0]
        return WordMap(word, tuple(tokens), shown, attention[..., tokens].mean(-1), self._image(image))

    def segment(self, words: str | Sequence[str] | None = None, image: int = 0) -> Segmentation:
        """The image segmented into words of the text; everything else is background.

        words   "dog, grass" or a list; None: every word that names something
        """
        wanted = [each for word in words.split(",") if (each := word.strip())] if isinstance(words, str) else words
        annotation, names = self.prompt_words(image).annotation(wanted)
        maps = self.segmenter.rescale(self.attention(image), annotation)
        scores = self.segmenter.refine(maps, self.capture, image, self._image(image))
        ids = [*names, *[BACKGROUND] * (len(scores) - len(names))]
        labels = [names.get(class_id, "background") for class_id in ids]
        return Segmentation(scores, ids, labels, self.size(), self._image(image))

    def at(self, x: int, y: int, image: int = 0) -> list[tuple[str, float]]:
        """The words by the attention of a pixel, highest first: a word's share among all words, sum 1.

        A word's attention is the mean over its tokens, bilinear between cells of the grid.
        x, y    columns from the left and rows from the top, from 0
        errors  OutsideImage, TraceError
        """
        attention, words = self.attention(image), self.prompt_words(image).content
        maps = torch.stack([attention[..., tokens].mean(-1) for tokens in words.values()])
        found = dict(
            Segmentation(divide(maps, maps.sum(0)), [*range(1, len(words) + 1)], [*words], self.size()).at(x, y)
        )
        total = sum(found.values())
        return [(word, share / total) for word, share in found.items()]

    def prompt_words(self, image: int = 0) -> PromptWords:
        """The words of a text and their tokens, limited to those that the denoiser was given."""
        rows = {} if self.beyond is None else self.beyond.rows
        length = self.attention(image).shape[-1] - sum(map(len, rows.values()))  # the text's own tokens
        if image >= len(self.prompts):
            raise TraceError("the pipeline was given embeddings, so the words are unknown; give trace(pipe, prompt=)")
        if self.mixed:
            raise TraceError(
                "prompt_2 differs from prompt: each token stands for a word of both, so no word has its own map. "
                "Give only one prompt"
            )
        family = self.layers.backbone
        try:
            known = family.tokenizers(self.layers.parts, length)
            if isinstance(known["tokenizer"], PromptReader):
                known["tokenizer"].refuse_other_length(self.prompts, exact=not family.text_is_first_half)
            further = {word: [length + row for row in own] for word, own in rows.items()}
            return PromptWords(self.prompts[image], **known, further=further)
        except ExtractorError as error:
            raise TraceError(str(error)) from None

    def _image(self, image: int) -> Any:
        return self.images[image] if image < len(self.images) else None
