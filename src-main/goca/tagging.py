"""Which classes an image-text model finds in an image: zero-shot CLIP, as published systems pre-filter classes.

    tagger = Tagger(TaggerConfig("openai/clip-vit-base-patch32"), class_names)
    tagger(image)           # [8, 15]: ids of the classes found
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusion_feature.images import read_image
from PIL import Image
from torch import Tensor


class TaggerError(ValueError):
    """An image-text model that cannot be loaded, or settings that make no sense; the message says what to set."""


@dataclass(frozen=True)
class TaggerConfig:
    """The fields of `tagger` in configs/config.yaml. Raises TaggerError.

    model      a folder or hub id of a CLIP model of transformers
    template   the prompt of a class, with {name} in it
    threshold  classes with at least this probability are found, 0..1
    """

    model: str = "openai/clip-vit-large-patch14"
    template: str = "a photo of a {name}"
    threshold: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise TaggerError(f"tagger.model is {self.model!r}; expected a folder or hub id of a CLIP model")
        if not isinstance(self.template, str) or self.template.count("{name}") != 1:
            raise TaggerError(f"tagger.template is {self.template!r}; expected a text with {{name}} in it, once")
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not number or not 0 <= self.threshold <= 1:
            raise TaggerError(f"tagger.threshold is {self.threshold!r}; expected a probability from 0 to 1")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> TaggerConfig:
        """From a mapping of fields. Raises TaggerError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(map(str, set(values or {}) - set(names))):
            raise TaggerError(f"tagger has no field {unknown[0]!r}; there are: {', '.join(names)}")
        return cls(**{str(name): value for name, value in (values or {}).items()})


class Tagger:
    """Zero-shot CLIP on the classes of a data set, loaded when it is first called. Raises TaggerError.

    class_names  class id -> its names; [] (the background) is not looked for. The embeddings of several names are
                 averaged.
    """

    def __init__(self, config: TaggerConfig, class_names: Sequence[Sequence[str]], device: Any = "cpu") -> None:
        self.config, self.device = config, device
        self.class_names = {class_id: list(names) for class_id, names in enumerate(class_names) if class_id and names}
        self._model: Any = None

    def __call__(self, image: Image.Image) -> list[int]:
        """Ids of the classes found in an image, ascending; none where no class reaches the threshold."""
        return [each for each, p in self.probabilities(image).items() if p >= self.config.threshold]

    @torch.no_grad()
    def probabilities(self, image: Image.Image) -> dict[int, float]:
        """Class id -> probability: the softmax over all classes of CLIP's scaled cosine similarities."""
        self.load()
        pixels = self._pixels(images=read_image(image).image, return_tensors="pt")["pixel_values"].to(self.device)
        embedded = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)[0]
        similarity = self._classes @ unit(embedded)  # [classes]
        shares = (self._model.logit_scale.exp() * similarity).softmax(0).tolist()
        return dict(zip(self.class_names, shares))

    def load(self) -> None:
        """Load the model, unless that is done. Raises TaggerError."""
        if self._model is not None:
            return
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        place = self.config.model
        try:
            model = CLIPModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(place)
            self._pixels = CLIPImageProcessor.from_pretrained(place)
        except (OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())[:300]
            raise TaggerError(
                f"tagger.model={place} cannot be loaded: {said}\nExpected a folder or hub id of a CLIP model of"
                " transformers, with a tokenizer, an image processor and weights in safetensors"
            ) from None
        self._model = model.to(self.device).eval()
        self._classes = torch.stack([self._embedded(tokenizer, names) for names in self.class_names.values()])

    def _embedded(self, tokenizer: Any, names: Sequence[str]) -> Tensor:
        """The mean direction of a class's names under the template   [D]"""
        prompts = [self.config.template.replace("{name}", name) for name in names]
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        text = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        return unit(unit(text).mean(0))


def unit(vectors: Tensor) -> Tensor:
    """Scaled to length 1 along the last dimension."""
    return vectors / vectors.norm(dim=-1, keepdim=True)
