"""The classes that zero-shot CLIP finds in an image; published systems pre-filter classes in this way.

tagger = Tagger(TaggerConfig("openai/clip-vit-base-patch32"), class_names)
tagger(image)           # [8, 15]: ids of the classes that were found
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusion_feature.images import read_image
from diffusion_feature.loading import pick_device
from PIL import Image
from torch import Tensor

from goca.benchmark.word_sources import Asked, TaggerConfig, TaggerError


class Tagger:
    """Zero-shot CLIP on the classes of a data set, loaded on the first call. Raises TaggerError.

    class_names  class id -> its names; [] (the background) is not looked for. The embeddings of several names are
                 averaged
    """

    def __init__(self, config: TaggerConfig, class_names: Sequence[Sequence[str]], device: Any = "auto") -> None:
        self.config, self.device = config, device
        self.class_names = {class_id: class_names[class_id] for class_id in Asked(class_names).vocabulary}
        self._model: Any = None

    def __call__(self, image: Image.Image) -> list[int]:
        """Ids of the classes found in an image, ascending; empty if no class reaches the threshold."""
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
        """Load the model, if it is not loaded yet. Raises TaggerError."""
        if self._model is not None:
            return
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        place = self.config.model
        try:
            model = CLIPModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(place)
            self._pixels = CLIPImageProcessor.from_pretrained(place)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TaggerError(
                f"tagger.model={place} cannot be loaded: {reason}\nExpected a folder or hub id of a CLIP model of"
                " transformers, with a tokenizer, an image processor and weights in safetensors"
            ) from None
        self.device = pick_device(self.device)
        self._model = model.to(self.device).eval()
        self._classes = torch.stack([self._embedded(tokenizer, names) for names in self.class_names.values()])

    def _embedded(self, tokenizer: Any, names: Sequence[str]) -> Tensor:
        """The mean direction of a class's names in the template   [D]"""
        prompts = [self.config.template.replace("{name}", name) for name in names]
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        text = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        return unit(unit(text).mean(0))


def unit(vectors: Tensor) -> Tensor:
    """Scale to length 1 along the last dimension."""
    return vectors / vectors.norm(dim=-1, keepdim=True)
