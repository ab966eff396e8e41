"""`goca.trace`: where the words of a prompt are in an image while it is generated.

    with goca.trace(pipe) as t:
        pipe("a dog on the grass")
    t.word("dog").overlay().save("dog.png")
    t.segment().save("labels.png")
    t.at(20, 40)                    # the words at a pixel, with their scores

Attention is aggregated as in segmentation, at every chosen denoising step, and averaged over the steps. The pipeline's
output is the same with and without a trace.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusion_feature import Consumer
from diffusion_feature.calls import Call
from diffusion_feature.latents import size_in_pixels
from diffusion_feature.renamed import warn_renamed
from diffusion_feature.tap import ConsumerGroup
from PIL import Image

from goca.config import SegmenterConfig, load_config
from goca.drawing.palettes import as_image
from goca.generation.adapters import PipelineLayers, config_of
from goca.generation.attached import AttachedPipeline
from goca.generation.averages import (
    Conditional,
    StepAverage,
    TraceError,
    negative_part,
    part_of,
    repeated,
    step_rule,
)
from goca.generation.further import NO_NEGATIVE, Beside, FurtherWords, Joining, further_words
from goca.generation.maps import TextMaps
from goca.method.aggregation import Aggregator
from goca.segmenter import Segmenter


class trace(TextMaps):
    """`with trace(pipe) as t: pipe(prompt)`: the words' maps over a generation's denoising steps.

    pipe     a diffusers text-to-image pipeline
    config   as for Segmenter.from_pretrained; None: found from the pipeline
    steps    the steps that count, from 0: None or "all", a slice, or a list; calls at the same timestep are one step
    prompt   the text, if the pipeline is given embeddings instead of it
    further  words that are not in the prompt, "mushroom, wall" or a list; they do not change the image
    negative whether the negative prompt is traced too
    errors   TraceError, ConfigNotKnown, ConfigError, WrongFamily, LayerNotFound
    A second generation inside the block replaces the first. Afterwards the pipeline is unchanged.

    t.further     maps of the prompt and the further words together
    t.negative    maps of the negative prompt, in the denoiser's pass with it
    t.images      the generated images; can be set (`t.images = ...`) if the pipeline returned none
    t.prompts     their prompts, as the text encoder read them
    """

    def __init__(
        self,
        pipe: Any,
        config: str | Mapping[str, Any] | SegmenterConfig | None = None,
        steps: str | slice | Iterable[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        further: str | Sequence[str] | None = None,
        negative: bool = False,
    ):
        self.pipe, self.config = pipe, load_config(config_of(pipe) if config is None else config)
        self.layers = PipelineLayers(pipe, self.config.version)
        self.segmenter = Segmenter(self.layers, self.config)
        self.chosen = step_rule(steps)
        self.given = None if prompt is None else texts(prompt)
        words = further_words(further)
        self._words = FurtherWords.encoded(self.layers, words) if words else None
        self._with_negative = negative
        self._begin(self.given or [], 1)
        self._prompt_seen = False  # whether the next generation's prompt was seen
        self._running: dict[StepAverage, Aggregator] = {}  # attention of the current denoiser call
        self._attached = AttachedPipeline(pipe, self.layers, TraceError)

    def _begin(self, prompts: Sequence[str], each: int, negative: Sequence[str] = ()) -> None:
        """Start a new generation of `each` images per prompt."""
        self._prompt_seen = True
        self.prompts = [prompt for prompt in prompts for _ in range(each)]
        self._negative = Beside(self, [text for text in negative for _ in range(each)], NO_NEGATIVE)
        self._further = Beside(self, self.prompts, "nothing was traced", self._words)
        self.step, self.timestep = -1, float("nan")
        self.capture = StepAverage()
        self.latents: tuple[int, int] = (0, 0)
        self._last: Call | None = None  # the last call, of this step or a repetition of it
        # attention of the step, while the denoiser may be called again in it
        self._held: dict[StepAverage, Aggregator] = {}
        self.mixed = False
        self._views = False  # whether calls at one timestep were for different latents
        self._drawn_size: tuple[int, int] | None = None
        self.images: list[Any] = []

    # ---- around the pipeline

    @property
    def pictures(self) -> list[Any]:
        """The former name of `images`."""
        warn_renamed("trace.pictures", "trace.images")
        return self.images

    @pictures.setter
    def pictures(self, images: list[Any]) -> None:
        warn_renamed("trace.pictures", "trace.images")
        self.images = images

    def __enter__(self) -> trace:
        self._attached.hook(self._before, self._after)
        if hasattr(self.pipe, "encode_prompt"):
            self._attached.observe(self.pipe, "encode_prompt", self._encoded)
        if hasattr(getattr(self.pipe, "image_processor", None), "postprocess"):
            self._attached.observe(self.pipe.image_processor, "postprocess", self._drawn)
        return self

    def __exit__(self, *error: Any) -> None:
        self._attached.detach()
        self._settle()

    def _encoded(self, arguments: Mapping[str, Any], result: Any) -> None:
        """The first encoded prompt is the generation's; a later one may be the negative prompt."""
        if self._prompt_seen:
            return
        name = self.layers.backbone.prompt[0][0].replace("tokenizer", "prompt")  # Flux attends to prompt_2
        prompts = arguments.get(name) or arguments.get("prompt") or self.given or []
        second = arguments.get("prompt_2") if name == "prompt" else None
        mixed = bool(second) and texts(second or "") != texts(prompts)
        prompts = texts(prompts)
        negative = texts(arguments.get("negative_prompt") or "")
        negative = negative * len(prompts) if len(negative) == 1 else negative
        read = getattr(self.pipe, "_text_preprocessing", None)  # PixArt's
        if read and prompts:
            clean = arguments.get("clean_caption", False)
            prompts, negative = read(prompts, clean_caption=clean), read(negative, clean_caption=clean)
        self._begin(prompts, arguments.get("num_images_per_prompt") or 1, negative)
        self.mixed = self._further.mixed = mixed
        self._negative.mixed = bool(arguments.get("negative_prompt_2"))

    def _drawn(self, arguments: Mapping[str, Any], result: Any) -> None:
        images = list(result) if not torch.is_tensor(result) else list(result.permute(0, 2, 3, 1))
        if images:
            self._drawn_size = drawn_size(images[0])
        if images and (isinstance(images[0], Image.Image) or images[0].shape[-1] == 3):
            self.images = [as_image(image) for image in images]

    # ---- around the denoiser

    def _before(self, call: Call) -> Consumer | None:
        family = self.layers.backbone
        if call.timestep == self.timestep:  # a step calls it again: for guidance, or in SD 3 with skipped layers
            self._views |= self._last is not None and not repeated(self._last, call)
            if not (family.text_comes_last and self._held):
                return None
            self._held = {}  # the earlier call was the half without the prompt
        else:
            self._settle()
            self.step, self.timestep, self._prompt_seen = self.step + 1, call.timestep, False
        self._last = call
        if not self.chosen(self.step):
            return None
        count, self.latents = len(self.prompts) or len(call.latents), call.side
        part = part_of(call, count, bool(getattr(self.pipe, "do_perturbed_attention_guidance", False)))
        part = 0 if family.text_is_first_half else part
        return self._consumers(call, count, part)

    def _consumers(self, call: Call, count: int, part: int | None) -> ConsumerGroup:
        """The consumers of one call's attention: for the prompt, and for the other texts that are traced."""
        plan = dataclasses.replace(self.segmenter.plan(), grid=self._grid())
        consumers: list[Consumer] = []
        self._running = {}

        def add(maps: TextMaps, part: int | None) -> None:
            self._running[maps.capture] = own = Aggregator(plan)
            states = None if maps.beyond is None else maps.beyond.states
            consumers.append(Conditional(own if states is None else Joining(own, states), count, part))

        add(self, part)
        if self._words is not None:
            add(self._further, part)
        other = negative_part(call, count, part, self.layers.backbone.text_is_first_half)
        if self._with_negative and other is not None:
            add(self._negative, other)
        return ConsumerGroup(consumers)

    @torch.no_grad()
    def _after(self, consumer: Consumer, output: Any) -> None:
        self._held, self._running = self._running, {}
        if not self.layers.backbone.text_comes_last:
            self._settle()

    def _settle(self) -> None:
        """Add a step's attention to the mean, once the denoiser will not be called again in this step."""
        for capture, seen in self._held.items():
            capture.add(seen)
        self._held = {}

    def _grid(self) -> tuple[int, int]:
        """A grid with cells of the config's size; at least 3 per side, since the blur reflects two."""
        size = self.config.img_size
        usual = size if isinstance(size, tuple) else (size, size)
        cells = zip(self.config.grid, self.size(), usual)
        h, w = (max(3, round(count * side / full)) for count, side, full in cells)
        return h, w

    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return size_in_pixels(self.layers.parts, torch.empty(0, 1, *self.latents))

    # ---- afterwards

    @property
    def steps(self) -> int:
        """The number of steps in the mean."""
        return self.capture.count

    @property
    def further(self) -> TextMaps:
        """Maps of the prompt and the further words together, from one softmax over both. Raises TraceError."""
        if self._words is None:
            raise TraceError("no further words are traced; give them: trace(pipe, further='mushroom, wall')")
        return self._further

    @property
    def negative(self) -> TextMaps:
        """Maps of the negative prompt, in the pass of the denoiser that has it. Raises TraceError."""
        if not self._with_negative:
            raise TraceError("the negative prompt is not traced; use trace(pipe, negative=True)")
        return self._negative

    def refuse(self) -> None:
        self._settle()
        if self.capture.count == 0:
            seen = f"{self.step + 1} steps ran, and none of them was chosen" if self.step >= 0 else "no step ran"
            raise TraceError(f"nothing was traced: {seen}; call the pipeline inside the `with` block")
        self._refuse_views()

    def _refuse_views(self) -> None:
        """Refuse images of another size than the latents: they were denoised in parts, unless they were resized."""
        drawn = self._drawn_size
        resized = "use_resolution_binning" in inspect.signature(type(self.pipe).__call__).parameters
        if drawn in (None, self.size(), self.latents) or (resized and not self._views):
            return
        raise TraceError(
            "the images are {} x {}, but the denoiser saw parts of {} x {} (a panorama?); only a generation that is "
            "denoised in one piece can be traced".format(*drawn, *self.size())  # type: ignore[misc]
        )


def texts(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def drawn_size(image: Any) -> tuple[int, int]:
    """(height, width) of a PIL image or an array [h, w, c]."""
    return (image.height, image.width) if isinstance(image, Image.Image) else tuple(image.shape[:2])
