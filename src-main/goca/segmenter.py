"""`Segmenter`: image + prompt -> `Segmentation`. The whole method, top to bottom."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from diffusion_feature import FeatureExtractor, expand_layers
from diffusion_feature.images import is_file, read_image
from diffusion_feature.tap import Consumer
from torch import Tensor

from goca.config import ASK, ConfigError, SegmenterConfig, load_config
from goca.embedded import resolve
from goca.errors import GocaError
from goca.method.aggregation import Aggregator, Plan
from goca.method.augmentation import Capture, View, averaged, views
from goca.method.rescaling import rescale
from goca.open import Answer, NoClass, Query
from goca.open.finding import Finder
from goca.prompts import LearntTokens, PromptAnnotation, annotate, blanked, parse_brackets
from goca.prompts.grammar import names_nothing
from goca.prompts.tokens import as_read
from goca.refine.chain import Sources, run_chain
from goca.segmentation import BACKGROUND, Segmentation, size_and_image

Picture = Any  # what `diffusion_feature.read_image` takes
FORWARD_RULES = {"noise_rule": "noise", "posterior": "posterior", "palette_resize": "palette_resize"}  # -> the switch
Prompt = str | Sequence[str] | PromptAnnotation


class EmptyClass(UserWarning):
    """A class without a single token in the text: its words were cut off, or never found."""


class PositionsBeyond(UserWarning):
    """An annotation that names token positions which the text encoder does not read."""


class BoundTooSmall(GocaError, ValueError):
    """max_bytes admits not even one picture."""


class PromptError(GocaError, ValueError):
    """Something that is not taken as a prompt, or other than one for each image; the message says what is."""


class Segmenter:
    """GoCA on one model. `Segmenter.from_pretrained(pipeline, "sd15")(image, "cat, grass, wall").save("labels.png")`"""

    method = "goca"
    finds_words = True  # ask=open works

    def __init__(self, extractor: FeatureExtractor, config: SegmenterConfig, max_bytes: int | None = None):
        self.max_bytes, self.taken = max_bytes, 0  # bytes that a capture may hold; that one picture was seen to take
        self.extractor, self.config, self.protocol = extractor, config, config.protocol
        if config.method != self.method:
            raise ConfigError(
                f"method is {config.method!r}; use goca.benchmark.predictor.SEGMENTERS[{config.method!r}]"
            )
        ids, where = extractor.layer_ids(), extractor.where
        self.blocks = [
            name.removesuffix("-cross-map") for name in expand_layers(config.cross_layers, ids, "-cross-map", where)
        ]
        self.space_blocks = [
            name.removesuffix("-self-map") for name in expand_layers(config.self_layers, ids, "-self-map", where)
        ]
        self.reference = expand_layers([config.ref_layer], ids, "", where)[0]
        self.dense = {layer: expand_layers([layer], ids, "", where)[0] for layer in config.dense_layers()}

    @classmethod
    def from_pretrained(
        cls,
        pipeline: Any,
        config: str | Mapping[str, Any] | SegmenterConfig,
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

        pipeline   a folder, a hub id, "goca:mini-sd", a pipeline object; None: the config's own
        config     a name in configs/model, a mapping of fields or a SegmenterConfig
        device     "auto": an accelerator where there is one;  dtype "auto": float32 on a CPU, float16 elsewhere
        max_bytes  what the capture of one forward may hold beyond the model's own; larger batches are cut in parts
        offload    "model", "sequential": weights wait on the CPU;  int8_text  T5 in 8 bit (bitsandbytes)
        ask        "complete", "open": replaces the config's own (see `__call__`)
        variant    of the weights' files: "auto" (16 bit where that is wanted and there), None (plain) or "fp16", "bf16"
        denoiser   a second folder or hub id: its denoiser takes the place of the pipeline's; None: the config's, where
                   the pipeline is the config's too
        vae_dtype  of the VAE's own; "auto": as dtype, and float32 where its config says `force_upcast`
        errors     ConfigError, and those of FeatureExtractor
        """
        config = load_config(config, **({} if ask is None else {"ask": ask}))
        if pipeline is None or pipeline == config.pipeline:
            pipeline, denoiser = config.pipeline, denoiser or config.denoiser
        pipeline = resolve(pipeline) if isinstance(pipeline, str) else pipeline
        given = (config.version, device, dtype, config.img_size, pipeline, offload, int8_text)
        files: dict[str, Any] = {"variant": variant, "denoiser": denoiser, "vae_dtype": vae_dtype}
        return cls(FeatureExtractor((), *given, **files), config, max_bytes)

    # ---- the method

    @overload
    def __call__(
        self,
        image: Picture,
        prompt: Prompt | Sequence[str],
        noise: Tensor | None = None,
        image_id: str | None = None,
        ask: str | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: list[Picture] | tuple[Picture, ...],
        prompt: Prompt | Sequence[Prompt | Sequence[str]],
        noise: Sequence[Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
        ask: str | None = None,
    ) -> list[Segmentation]: ...

    @torch.no_grad()
    def __call__(self, image, prompt, noise=None, image_id=None, ask=None):
        """Segment an image by words such as "cat, grass, wall" or ["cat", "grass"], or by an annotation.

        image     a file's name, a PIL image, an array or a tensor (uint8, or fractions 0..1; see `read_image`); a list
                  of these: one forward for all (see `max_bytes`), a list of results
        prompt    one text, or a list of words; for a list of images: one text for all, or a list with one text, or one
                  list of words, for each
        noise     the noise to add, shape of the latents; None: drawn, seeded by the image's id
        image_id  what the seed is made of; by default the file's name, or the picture's content
        ask       "open": the words are what is looked for, the rest is background, and what is not there gets nothing;
                  "complete": the prompt names everything in the picture (the published method).
                  None: the config's; where it says nothing, open for words and complete for annotations
        errors    PictureUnreadable, ImageError, PromptError, NoClass, NoiseError
        """
        if not isinstance(image, list | tuple):
            return self([image], [prompt], [noise], [image_id], ask)[0]
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * len(image)
        if len(prompts) != len(image):
            raise PromptError(f"{len(image)} pictures and {len(prompts)} prompts; expected one each, or one for all")
        for each in prompts:
            check_prompt(each)
        if self.asked(ask, prompts) == "open":
            queries = [Query.of_words(each, self.learnt) for each in prompts]
            answers = self.look_for(image, queries, noise, image_id)
            return [answer.segmentation(*each) for answer, *each in zip(answers, queries, image, strict=True)]
        read = [self.read_prompt(each) for each in prompts]
        captures = self.captures(image, [annotation for annotation, _ in read], noise, image_id)
        return [
            self.segmentation(self.scores(capture, number, annotation, picture), annotation, names, picture)
            for (capture, number), (annotation, names), picture in zip(captures, read, image, strict=True)
        ]

    def asked(self, ask: str | None, prompts: Sequence[Any]) -> str:
        """Which way a call asks. Raises ConfigError for a way that is not known, or that cannot be gone."""
        given = ask or self.config.ask
        if given not in (None, *ASK):
            raise ConfigError(f"ask is {given!r}; it can be one of: {', '.join(ASK)}")
        annotated = any(isinstance(prompt, PromptAnnotation) for prompt in prompts)
        way = given or ("complete" if annotated or not self.finds_words else "open")
        if way == "open" and annotated:
            raise ConfigError("ask=open looks for words; give a text or a list of words in place of an annotation")
        return way

    def fitted(self, prompt: Any, ask: str | None = None) -> tuple[list[str], list[str]]:
        """The texts that a prompt is asked in, and the names of classes whose words are cut since they do not fit."""
        if self.asked(ask, [prompt]) == "open" and not isinstance(prompt, PromptAnnotation):
            query = Query.of_words(prompt, self.learnt)
            asked, names = Finder(self).prompts(query), query.names()
        else:
            annotation, names = self.read_prompt(prompt)
            asked = [annotation]
        lost = [names[class_id] for annotation in asked for class_id in annotation.lost_classes()]
        return [annotation.caption for annotation in asked], lost

    def look_for(
        self,
        images: Sequence[Picture],
        queries: Sequence[Query],
        noise: Sequence[Tensor | None] | None = None,
        image_id: Sequence[str | None] | None = None,
    ) -> Iterator[Answer]:
        """Look for a query in each image (`ask=open`): scores, and for each class whether it is there.

        images, noise, image_id   as in `__call__`
        queries   one per image. One is written into as many prompts as its words need; the prompts of all images share
                  forwards (see `max_bytes`), each image being encoded, and its noise drawn, once per forward
        returns   an answer per image, in their order
        """
        if not self.finds_words:
            raise ConfigError(f"ask=open is not for method {self.method!r}; choose ask=complete")
        return Finder(self).answers(images, queries, noise, image_id)

    def scores(
        self, capture: Capture, number: int, annotation: PromptAnnotation, picture: Picture | None = None
    ) -> Tensor:
        """Refined class maps and the background's, of one picture of a capture   [n, g, g]"""
        attention = capture.attention_map()[number]  # [g, g, N]  heads, then layers
        return self.refine(self.rescale(attention, annotation), capture, number, picture)

    @torch.no_grad()
    def score_maps(
        self, image: Picture, annotation: PromptAnnotation, noise: Tensor | None = None, image_id: str | None = None
    ) -> Tensor:
        """Class maps and then the background map, before refinement   [classes + 1, g, g], float32

        returns    with keep_all_objects: one map per background entity in place of the background map
        """
        return self.rescale(self.capture(image, annotation, noise, image_id).attention_map()[0], annotation)

    def capture(
        self,
        image: Picture,
        annotation: PromptAnnotation,
        noise: Tensor | None = None,
        image_id: str | None = None,
        head_rules: Sequence[str] = (),
        layer_rules: Sequence[str] = (),
    ) -> Capture:
        """One forward, reduced: `.attention_map(head_rule, layer_rule)` and `.space_map()` can be asked for afterwards.

        The rules are the config's unless others are listed; every combination comes from the same forward.
        """
        return self.observe(self.plan(head_rules, layer_rules), [image], [annotation], [noise], [image_id])

    def captures(
        self,
        images: Sequence[Picture],
        annotations: Sequence[PromptAnnotation],
        noise: Sequence[Tensor | None] | None = None,
        image_ids: Sequence[str | None] | None = None,
        places: Sequence[int] | None = None,
    ) -> Iterator[tuple[Capture, int]]:
        """For each prompt its capture and its place in it; as many prompts in one forward as `max_bytes` admits.

        places  the number of each prompt's picture, ascending; None: one prompt per picture
        errors  BoundTooSmall where one picture takes more
        """
        noises = [None if each is None else each.reshape(1, *each.shape[-3:]) for each in noise or [None] * len(images)]
        ids = [None] * len(images) if image_ids is None else list(image_ids)
        places = range(len(images)) if places is None else places
        start = 0
        while start < len(places):
            stop = start + self.admitted(self.of_one_length(annotations[start:]))
            first, last = places[start], places[stop - 1] + 1
            seen = images[first:last], annotations[start:stop], noises[first:last], ids[first:last]
            capture = self.observe(self.plan(), *seen, [place - first for place in places[start:stop]])
            self.taken = max(self.taken, -(-capture.peak_bytes // (stop - start)))
            self.admitted(1)
            yield from ((capture, number) for number in range(stop - start))
            start = stop

    def of_one_length(self, annotations: Sequence[PromptAnnotation]) -> int:
        """How many of the first prompts have equally many text tokens: only those can share a forward."""
        lengths = (self.extractor.text_length(each.caption) for each in annotations)
        first = next(lengths)
        return 1 + sum(1 for _ in itertools.takewhile(lambda length: length == first, lengths))

    def admitted(self, pictures: int) -> int:
        """How many of the pictures one forward may take: one until it is known what a picture takes."""
        if self.max_bytes is None:
            return pictures
        if self.taken > self.max_bytes:
            raise BoundTooSmall(
                f"max_bytes is {self.max_bytes:,}; one picture takes {self.taken:,} with this config: "
                "allow that, or choose a smaller img_size or feat_size"
            )
        return min(pictures, self.max_bytes // self.taken) if self.taken else 1

    def observe(
        self,
        plan: Plan,
        images: Sequence[Picture],
        annotations: Sequence[PromptAnnotation],
        noises: Sequence[Tensor | None],
        image_ids: Sequence[str | None],
        places: Sequence[int] | None = None,
    ) -> Capture:
        """What the plan keeps of several pictures: of one forward, or averaged over all that the config asks for.

        places  as for `forward`
        """

        names = [name_of(*each) for each in zip(images, image_ids)]
        read = [read_image(image).stored for image in images]

        def look(view: View) -> Aggregator:
            aggregator = Aggregator(plan)
            self.forward(read, annotations, aggregator, noises, names, view, places)
            return aggregator

        looks = views(self.config)
        return averaged(looks, [look(view) for view in looks])

    def forward(
        self,
        images: Sequence[Picture],
        annotations: Sequence[PromptAnnotation],
        consumer: Consumer,
        noises: Sequence[Tensor | None],
        image_ids: Sequence[str | None],
        view: View | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """One forward of several pictures as `view` looks at them; the consumer is fed while it runs.

        noises   for the first draw; others are drawn
        places   the number of each prompt's picture; None: one prompt per picture
        """
        protocol, view = self.protocol, view or View(self.config.t)
        seeds = [None if seed is None else view.seed(seed) for seed in self.seeds(images, image_ids)]
        rules: dict[str, Any] = {name: getattr(protocol, switch) for name, switch in FORWARD_RULES.items()}
        captions = self.texts([annotation.caption for annotation in annotations])
        pictures = [view.picture(image) for image in images]
        drawn = list(noises) if view.draw == 0 else [None] * len(images)
        own = places is None or list(places) == list(range(len(images)))  # one prompt per picture
        several: dict[str, Any] = {} if own else {"places": places}
        self.extractor.forward(captions, pictures, consumer, view.t, drawn, seeds, **rules, **several)

    def seeds(self, images: Sequence[Picture], image_ids: Sequence[str | None]) -> list[int | None]:
        """The seed of each image's noise; None where the protocol seeds nothing."""
        return [None if self.protocol.seed == "none" else seed_of(*each) for each in zip(images, image_ids)]

    def texts(self, captions: Sequence[str]) -> list[str]:
        """Captions as the tokenizers are given them."""
        given = self.extractor.backbone.tokenizers(self.extractor.parts)
        tokenizers = [given[name] for name in ("tokenizer", "tokenizer_2") if name in given]
        return [as_read(caption, tokenizers, self.protocol.token_spans) for caption in captions]

    def rescale(self, attention: Tensor, annotation: PromptAnnotation, rule: str | None = None) -> Tensor:
        """Token maps [g, g, N] -> class maps and the background's   [classes + 1, g, g]"""
        length = attention.shape[-1]
        classes = [within(tokens, length) for tokens in annotation.existent_objects.values()]
        backgrounds = [within(tokens, length) for tokens in annotation.background_objects]
        content = within(annotation.rescaling_token_id, length)
        rules = rule or self.config.rescale_method, self.config.token_method
        maps = rescale(attention, classes + backgrounds, content, *rules)
        warn_of_positions(annotation, length)
        if self.protocol.empty_class == "zero":
            maps = self.zero_empty(maps, classes + backgrounds, annotation)
        if self.config.keep_all_objects:
            return maps
        background = maps[len(classes) :].amax(0, keepdim=True) if backgrounds else maps.new_zeros(1, *maps.shape[1:])
        return torch.cat([maps[: len(classes)], background])

    def refine(self, scores: Tensor, capture: Capture, number: int = 0, picture: Picture | None = None) -> Tensor:
        """Scores [n, g, g] through the config's chain -> [n, g, g], or [n, H, W] after a step at the picture's size."""
        return run_chain(scores, self.config, Sources(capture, number, picture, self.dense))

    # ---- around it

    def plan(self, head_rules: Sequence[str] = (), layer_rules: Sequence[str] = ()) -> Plan:
        """What the forward is reduced to under this config."""
        config = self.config
        return Plan(
            blocks=tuple(self.blocks),
            space_blocks=tuple(self.space_blocks),
            grid=config.grid,
            head_rules=tuple(head_rules) or (config.head_method,),
            layer_rules=tuple(layer_rules) or (config.layer_method,),
            reference=self.reference,
            first_channel=self.protocol.reference_channels == "first",
            normalised_rows=self.protocol.self_map_rows == "normalised",
            dense=tuple(self.dense.values()),
        )

    def zero_empty(self, maps: Tensor, entities: Sequence[Sequence[int]], annotation: PromptAnnotation) -> Tensor:
        """Entities without a token score 0 everywhere; for a class, with a warning."""
        if all(entities):
            return maps
        for class_id, tokens in zip(annotation.existent_objects, entities):
            if not tokens:
                warnings.warn(
                    f"class {class_id} has no token left in {annotation.caption!r}, so it scores 0 everywhere: its "
                    "words were cut off or never found. A shorter caption, or its words first, would keep it.",
                    EmptyClass,
                    stacklevel=4,
                )
        empty = torch.tensor([not tokens for tokens in entities], device=maps.device)
        return maps.masked_fill(empty[:, None, None], 0)

    @property
    def learnt(self) -> LearntTokens:
        """The learnt tokens (textual inversion) that the pipeline has now."""
        return LearntTokens.of(**self.extractor.backbone.tokenizers(self.extractor.parts))

    def read_prompt(self, prompt: Prompt) -> tuple[PromptAnnotation, dict[int, str]]:
        """The annotation of a prompt, and the names of its classes; in words every entity becomes a class.

        Parts stand in brackets behind what they belong to: "(tree, trunk), sky" are the classes tree and sky.
        """
        if isinstance(prompt, PromptAnnotation):
            return prompt, {class_id: f"class {class_id}" for class_id in prompt.existent_objects}
        prompt = one_text(prompt)
        hidden = parse_brackets(self.learnt.hide(blanked(prompt), any_case=True).lower())
        groups = {group[0]: group for group in reversed(hidden)}  # the first of a name counts
        if all(map(names_nothing, groups)):
            raise NoClass(f"the prompt {prompt!r} names nothing; expected e.g. 'cat, grass, wall'")
        words = [", ".join(groups[name]) for name in reversed(groups)]
        names = {number: self.learnt.show(name) for number, name in enumerate(reversed(groups), start=1)}
        annotation = annotate(
            self.learnt.show(", ".join(f"({text})" if "," in text else text for text in words)),
            [[], *([name] for name in names.values())],
            list(names),
            **self.extractor.backbone.tokenizers(self.extractor.parts),
            add_background=False,
            add_missing=False,
            protocol=self.protocol,
        )
        return annotation, names

    def segmentation(
        self, scores: Tensor, annotation: PromptAnnotation, names: Mapping[int, str], image: Picture
    ) -> Segmentation:
        ids = list(annotation.existent_objects)
        rest = len(scores) - len(ids)
        words = [names[class_id] for class_id in ids] + ["background"] * rest
        return Segmentation(scores, ids + [BACKGROUND] * rest, words, *size_and_image(image))


def warn_of_positions(annotation: PromptAnnotation, length: int) -> None:
    """Warn of positions beyond the text that are left out; a class that has none left has a warning of its own."""
    named = {
        "rescaling_token_id": [annotation.rescaling_token_id],
        "existent_objects": [tokens for tokens in annotation.existent_objects.values() if within(tokens, length)],
        "background_objects": annotation.background_objects,
    }
    for name, lists in named.items():
        if beyond := sorted({token for tokens in lists for token in tokens if token >= length}):
            shown = ", ".join(map(str, beyond[:5])) + ", ..." * (len(beyond) > 5)
            warnings.warn(
                f"{name} names the positions {shown}; the text encoder reads {length} tokens of"
                f" {annotation.caption!r}, so they are left out",
                PositionsBeyond,
                stacklevel=4,
            )


def within(tokens: Iterable[int], length: int) -> list[int]:
    """The token positions that the text really has."""
    return [token for token in tokens if 0 <= token < length]


def check_prompt(prompt: Any) -> None:
    """Raises PromptError for anything but a text, a list of words or an annotation."""
    words = prompt if isinstance(prompt, list | tuple) else [prompt]
    if not isinstance(prompt, PromptAnnotation) and not all(isinstance(word, str) for word in words):
        shown = text if len(text := repr(prompt)) <= 80 else f"{text[:77]}..."
        raise PromptError(
            f"the prompt is {shown}; expected a text such as 'cat, grass, wall', a list of words, or a "
            "PromptAnnotation: one for an image, a list of them for a list of images"
        )


def one_text(prompt: str | Sequence[str]) -> str:
    """A prompt, or a list of words, as one text. Raises PromptError."""
    check_prompt(prompt)
    return prompt if isinstance(prompt, str) else ", ".join(prompt)


def name_of(image: Picture, image_id: str | None) -> str | None:
    """What the image's seed is made of: its id, or its file's name; None: its content."""
    return image_id if image_id is not None or not is_file(image) else Path(image).name


def seed_of(image: Picture, image_id: str | None) -> int:
    """A seed that depends on the image's id alone: on no machine, batch or number of processes."""
    if (name := name_of(image, image_id)) is not None:
        source = str(name).encode()
    else:
        read = read_image(image).stored
        source = f"{read.mode} {read.size}".encode() + read.tobytes()
    return int.from_bytes(hashlib.sha256(source).digest()[:7], "big")
