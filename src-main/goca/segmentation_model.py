"""`SegmentationModel`: a loaded model that reads prompts and returns segmentations; its methods compute the scores.

`goca.segmenter.Segmenter` is the paper's method, `goca.variants.diffsegmentor.DiffSegmentor` a baseline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from diffusion_feature import FeatureExtractor, expand_layers
from diffusion_feature.tap import Consumer
from torch import Tensor

from goca.config import ASK, ConfigError, SegmenterConfig, load_config
from goca.embedded import resolve
from goca.generation.adapters import config_of
from goca.generation.stored import config_of_place
from goca.method.augmentation import Augmentation
from goca.method.batch_budget import BatchBudget
from goca.method.summary import AttentionSummary
from goca.open import Answer, Query
from goca.open.finding import Finder
from goca.prompts import LearntTokens, PromptAnnotation
from goca.prompts.reading import Prompt, prompts_per_image, read_prompt
from goca.prompts.tokens import as_read
from goca.refine.chain import RefinementInputs, run_chain
from goca.requests import ImageLike, Request, make_requests, seed_of, starts_image
from goca.segmentation import BACKGROUND, Segmentation, size_and_image

# argument of FeatureExtractor.forward -> the protocol's switch
FORWARD_RULES = {"noise_rule": "noise", "posterior": "posterior", "palette_resize": "palette_resize"}


class SegmentationModel(ABC):
    """A model with its config. Subclasses implement `scores` and `score_maps`.

    extractor  the model's layers
    config     settings of the method
    max_bytes  memory that the attention of one forward pass may hold; larger batches are split. None: no limit
    """

    method = ""  # the config's `method`
    finds_words = False  # whether ask=open is supported

    def __init__(self, extractor: FeatureExtractor, config: SegmenterConfig, max_bytes: int | None = None):
        if config.method != self.method:
            raise ConfigError(
                f"config.method is {config.method!r}; use goca.benchmark.predictor.SEGMENTERS[{config.method!r}] "
                f"instead of {type(self).__name__}"
            )
        self.extractor, self.config, self.protocol = extractor, config, config.protocol
        self.budget = BatchBudget(max_bytes)
        self.blocks = self._blocks(config.cross_layers, "-cross-map")
        self.space_blocks = self._blocks(config.self_layers, "-self-map")
        (self.reference,) = self._ids([config.ref_layer])
        self.dense = {layer: self._ids([layer])[0] for layer in config.dense_layers()}  # as named -> layer id

    def _ids(self, layers: Any, suffix: str = "") -> list[str]:
        """Layer ids, of ids or patterns in the config. Raises LayerNotFound."""
        return expand_layers(layers, self.extractor.layer_ids(), suffix, self.extractor.where)

    def _blocks(self, layers: Any, suffix: str) -> list[str]:
        """The blocks of maps that the config names."""
        return [name.removesuffix(suffix) for name in self._ids(layers, suffix)]

    @classmethod
    def from_pretrained(
        cls,
        pipeline: Any,
        config: str | Mapping[str, Any] | SegmenterConfig | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        max_bytes: int | None = None,
        offload: str | None = None,
        int8_text: bool = False,
        ask: str | None = None,
        variant: str | None = "auto",
        denoiser: str | None = None,
        vae_dtype: str | torch.dtype = "auto",
    ) -> Self:
        """A segmenter on a pretrained model.

        pipeline   a folder, a hub id, "goca:mini-sd" or a pipeline object; None: the config's own
        config     a name in configs/model, a mapping of fields or a SegmenterConfig; None: the one that fits the
                   pipeline, as for `goca.trace`
        device     "auto": an accelerator if there is one, else the CPU
        dtype      "auto": float32 on a CPU; on an accelerator float16, or bfloat16 for families that need its range
        max_bytes  memory that the attention of one forward pass may hold, besides the model; larger batches are split
        offload    "model" or "sequential": weights are kept on the CPU
        int8_text  whether T5 is loaded in 8 bit (bitsandbytes)
        ask        "complete" or "open": overrides the config's `ask` (see `__call__`)
        variant    the variant of weight files: "auto" (16 bit if the dtype is and they exist), None, "fp16" or "bf16"
        denoiser   another folder or hub id, whose denoiser replaces the pipeline's; None: the config's, if the
                   pipeline is the config's too
        vae_dtype  dtype of the VAE; "auto": `dtype`, or float32 if the VAE's config sets `force_upcast`
        raises     ConfigError, ConfigNotKnown if no config fits, and the errors of FeatureExtractor
        """
        if config is None:
            config = fitting_config(pipeline, denoiser)
        config = load_config(config, **({} if ask is None else {"ask": ask}))
        if pipeline is None or pipeline == config.pipeline:
            pipeline, denoiser = config.pipeline, denoiser or config.denoiser
        extractor = FeatureExtractor(
            (),
            config.version,
            device,
            dtype,
            config.img_size,
            resolve(pipeline) if isinstance(pipeline, str) else pipeline,
            offload,
            int8_text,
            variant=variant,
            denoiser=denoiser,
            vae_dtype=vae_dtype,
        )
        return cls(extractor, config, max_bytes)

    @overload
    def __call__(
        self,
        image: ImageLike,
        prompt: Prompt | Sequence[str],
        noise: Tensor | None = None,
        image_id: str | None = None,
        ask: str | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: list[ImageLike] | tuple[ImageLike, ...],
        prompt: Prompt | Sequence[Prompt | Sequence[str]],
        noise: Sequence[Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
        ask: str | None = None,
    ) -> list[Segmentation]: ...

    @torch.no_grad()
    def __call__(self, image, prompt, noise=None, image_id=None, ask=None):
        """Segment an image by class names such as "cat, grass, wall" or ["cat", "grass"], or by an annotation.

        image     a file name, a PIL image, an array or a tensor (uint8, or float in 0..1; see `read_image`); a list
                  of these is one batch (see `max_bytes`) and returns a list
        prompt    one text, or a list of class names; for a list of images: one text for all, or a list with a text or
                  a list of class names for each
        noise     the noise to add, in the shape of the latents; None: drawn, with a seed from `image_id`
        image_id  determines the seed; by default the file name, or the image's content
        ask       "open": some classes may be absent and then get no pixels; everything else is background.
                  "complete": the prompt names everything in the image (the published method).
                  None: the config's `ask`; without one, "open" for texts and "complete" for annotations
        raises    ImageUnreadable, ImageError, PromptError, NoClass, NoiseError
        """
        if not isinstance(image, list | tuple):
            return self([image], [prompt], [noise], [image_id], ask)[0]
        prompts = prompts_per_image(prompt, len(image))
        if self.asked(ask, prompts) == "open":
            queries = [Query.of_words(each, self.learnt) for each in prompts]
            answers = self.look_for(image, queries, noise, image_id)
            return [answer.segmentation(*each) for answer, *each in zip(answers, queries, image, strict=True)]
        annotations, names = zip(*map(self.read_prompt, prompts)) if prompts else ((), ())
        scores = self.scores(make_requests(image, annotations, noise, image_id))
        return [self.segmentation(*each) for each in zip(scores, annotations, names, image, strict=True)]

    @abstractmethod
    def scores(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Refined class maps and the background's, for each request   [n, g, g]

        Requests share forward passes (see `max_bytes`); a batch runs when its first result is requested.
        """

    @abstractmethod
    def score_maps(
        self, image: ImageLike, annotation: PromptAnnotation, noise: Tensor | None = None, image_id: str | None = None
    ) -> Tensor:
        """Class maps and then the background map, before refinement   [classes + 1, g, g] float32"""

    def finder(self) -> Finder:
        """Looks for classes that may be absent (`ask=open`). Raises ConfigError if that is not supported."""
        raise ConfigError(f"ask=open is not supported by method {self.method!r}; choose ask=complete")

    def use_class_names(self, names: Mapping[int, str]) -> None:  # noqa: B027 - optional
        """Class id -> name, for methods that write their own prompts from class names; others ignore them."""

    def forward(
        self, requests: Sequence[Request], consumer: Consumer, augmentation: Augmentation | None = None
    ) -> None:
        """One forward pass over a batch; the consumer receives each layer's attention while it runs.

        augmentation  None: the unaugmented pass at the config's timestep. Extra noise samples are always drawn, even
                      if the requests have noise
        """
        protocol, augmentation = self.protocol, augmentation or Augmentation(self.config.t)
        is_new = starts_image(requests)
        images = [request for request, new in zip(requests, is_new) if new]
        seeds = self.seeds([request.image for request in images], [request.image_id for request in images])
        several: dict[str, Any] = {"places": [sum(is_new[: n + 1]) - 1 for n in range(len(is_new))]}
        self.extractor.forward(
            self.texts([request.annotation.caption for request in requests]),
            [augmentation.image(request.image) for request in images],
            consumer,
            augmentation.t,
            [request.noise if augmentation.noise_sample == 0 else None for request in images],
            [None if seed is None else augmentation.seed(seed) for seed in seeds],
            **{name: getattr(protocol, switch) for name, switch in FORWARD_RULES.items()},
            **({} if all(is_new) else several),
        )

    def seeds(self, images: Sequence[ImageLike], image_ids: Sequence[str | None]) -> list[int | None]:
        """The seed of each image's noise; None if the protocol does not seed noise."""
        return [
            None if self.protocol.seed == "none" else seed_of(*each) for each in zip(images, image_ids, strict=True)
        ]

    def texts(self, captions: Sequence[str]) -> list[str]:
        """Captions as the tokenizers receive them."""
        tokenizers = [self._tokenizers[name] for name in ("tokenizer", "tokenizer_2") if name in self._tokenizers]
        return [as_read(caption, tokenizers, self.protocol.token_spans) for caption in captions]

    def refine(
        self, scores: Tensor, summary: AttentionSummary | None, number: int = 0, image: ImageLike | None = None
    ) -> Tensor:
        """Scores [n, g, g] after the config's refinement steps   [n, g, g], or [n, H, W] after a step at image size

        summary, number  the batch's attention and the image's number in it; None, if no step needs attention
        """
        return run_chain(scores, self.config, RefinementInputs(summary, number, image, self.dense))

    # ---- prompts and results

    @property
    def _tokenizers(self) -> dict[str, Any]:
        """The tokenizer arguments of `annotate`."""
        return self.extractor.backbone.tokenizers(self.extractor.parts)

    @property
    def learnt(self) -> LearntTokens:
        """The learnt tokens (textual inversion) currently loaded in the pipeline."""
        return LearntTokens.of(**self._tokenizers)

    def read_prompt(self, prompt: Prompt) -> tuple[PromptAnnotation, dict[int, str]]:
        """The annotation of a prompt, and the names of its classes; see `goca.prompts.reading.read_prompt`."""
        return read_prompt(prompt, self._tokenizers, self.protocol)

    def look_for(
        self,
        images: Sequence[ImageLike],
        queries: Sequence[Query],
        noise: Sequence[Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
    ) -> Iterator[Answer]:
        """Look for classes that may be absent (`ask=open`): their scores, and whether each is present.

        images, noise, image_id   as in `__call__`
        queries   one per image; a query that is too long for one prompt is split into several for the same image
        returns   an answer per image, in order
        """
        return self.finder().answers(images, queries, noise, image_id)

    def asked(self, ask: str | None, prompts: Sequence[Any]) -> str:
        """The effective `ask` of a call with these prompts, "open" or "complete". Raises ConfigError."""
        given = ask or self.config.ask
        if given not in (None, *ASK):
            raise ConfigError(f"ask is {given!r}; expected one of: {', '.join(ASK)}")
        annotated = any(isinstance(prompt, PromptAnnotation) for prompt in prompts)
        way = given or ("complete" if annotated or not self.finds_words else "open")
        if way == "open" and annotated:
            raise ConfigError("ask=open expects class names: a text or a list of words instead of an annotation")
        return way

    def fitted(self, prompt: Any, ask: str | None = None) -> tuple[list[str], list[str]]:
        """The prompts given to the model for a user's prompt, and the names of the classes that were cut off."""
        if self.asked(ask, [prompt]) == "open" and not isinstance(prompt, PromptAnnotation):
            query = Query.of_words(prompt, self.learnt)
            annotations, names = self.finder().prompts(query), query.names()
        else:
            annotation, names = self.read_prompt(prompt)
            annotations = [annotation]
        lost = [names[class_id] for annotation in annotations for class_id in annotation.lost_classes()]
        return [annotation.caption for annotation in annotations], lost

    def segmentation(
        self, scores: Tensor, annotation: PromptAnnotation, names: Mapping[int, str], image: ImageLike
    ) -> Segmentation:
        """Scores with the names of their classes; the maps after the classes' are background."""
        ids = list(annotation.existent_objects)
        backgrounds = len(scores) - len(ids)
        words = [names[class_id] for class_id in ids] + ["background"] * backgrounds
        return Segmentation(scores, ids + [BACKGROUND] * backgrounds, words, *size_and_image(image))


def fitting_config(pipeline: Any, denoiser: str | None = None) -> str:
    """The name of the config that fits a pipeline: an object, a folder, a hub id or "goca:NAME"."""
    if pipeline is None:
        raise ConfigError("neither a pipeline nor a config was given; name one, such as config='sd15'")
    return config_of_place(str(pipeline), denoiser) if isinstance(pipeline, str | Path) else config_of(pipeline)
