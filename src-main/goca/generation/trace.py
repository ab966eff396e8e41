"""`goca.trace`: where the words of a prompt are in a picture that is being generated.

    with goca.trace(pipe) as t:
        pipe("a dog on the grass")
    t.word("dog").overlay().save("dog.png")
    t.segment().save("labels.png")

Attention is aggregated as in segmentation, at every chosen denoising step, and averaged over the steps. The pipeline's
output is the same with and without a trace.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusion_feature import AttentionTap, ExtractorError
from diffusion_feature.calls import Call, CallNotUnderstood
from diffusion_feature.chat import PromptReader
from diffusion_feature.latents import picture_size
from diffusion_feature.modules import not_compiled
from PIL import Image
from torch import Tensor

from goca.config import SegmenterConfig, load_config
from goca.drawing.palettes import as_picture
from goca.generation.adapters import PipelineLayers, config_of
from goca.generation.averages import Conditional, StepAverage, TraceError, WordMap, part_of, repeated, step_rule
from goca.method.aggregation import Aggregator
from goca.method.rescaling import rescale
from goca.prompts.positions import positions_in_text
from goca.prompts.words import PromptWords
from goca.segmentation import BACKGROUND, Segmentation
from goca.segmenter import Segmenter


class trace:
    """`with trace(pipe) as t: pipe(prompt)`: the words' maps over a generation's denoising steps.

    pipe     a diffusers text-to-image pipeline
    config   as for Segmenter.from_pretrained; None: found from the pipeline
    steps    which steps count, from 0: None or "all", a slice, or a list of numbers; calls at one timestep are one step
    prompt   the text, where the pipeline is given embeddings instead of one
    errors   TraceError, ConfigNotKnown, ConfigError, WrongFamily, LayerNotFound
    A second generation inside the block takes the place of the first. Afterwards the pipeline is as it was.

    t.pictures    the generated pictures; `t.pictures = ...` where the pipeline returned none
    t.prompts     their prompts, as the text encoder read them
    """

    def __init__(
        self,
        pipe: Any,
        config: str | Mapping[str, Any] | SegmenterConfig | None = None,
        steps: str | slice | Iterable[int] | None = None,
        prompt: str | Sequence[str] | None = None,
    ):
        self.pipe, self.config = pipe, load_config(config_of(pipe) if config is None else config)
        self.layers = PipelineLayers(pipe, self.config.version)
        self.segmenter = Segmenter(self.layers, self.config)
        self.chosen = step_rule(steps)
        self.given = None if prompt is None else texts(prompt)
        self._begin(self.given or [], 1)
        self._told = False  # whether the prompt of the generation to come was seen
        self._tap: AttentionTap | None = None

    def _begin(self, prompts: Sequence[str], each: int) -> None:
        """A new generation of `each` pictures per prompt."""
        self._told = True
        self.prompts = [prompt for prompt in prompts for _ in range(each)]
        self.step, self.timestep = -1, float("nan")
        self.capture = StepAverage()
        self.latents: tuple[int, int] = (0, 0)
        self._last: Call | None = None  # the last call, of this step or a repetition of it
        self._held: Aggregator | None = None  # what was seen of the step, while it may call the denoiser again
        self._mixed = False  # whether two encoders that share their tokens' places were given different prompts
        self._views = False  # whether calls at one timestep were for different latents
        self._drawn_size: tuple[int, int] | None = None
        self.pictures: list[Any] = []

    # ---- around the pipeline

    def __enter__(self) -> trace:
        denoiser, self._undo = self.layers.denoiser, ExitStack()
        self._undo.enter_context(not_compiled(denoiser.modules()))
        before = denoiser.register_forward_pre_hook(self._before, with_kwargs=True)
        self._undo.callback(before.remove)
        after = denoiser.register_forward_hook(self._after, always_call=True)
        self._undo.callback(after.remove)
        if hasattr(self.pipe, "encode_prompt"):
            self._undo.callback(watch(self.pipe, "encode_prompt", self._encoded))
        if hasattr(getattr(self.pipe, "image_processor", None), "postprocess"):
            self._undo.callback(watch(self.pipe.image_processor, "postprocess", self._drawn))
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._undo.close()
        self._settle()
        if self._tap is not None:  # Ctrl-C inside the denoiser
            tap, self._tap = self._tap, None
            tap.__exit__(kind or KeyboardInterrupt, error, traceback)

    def _encoded(self, arguments: Mapping[str, Any], result: Any) -> None:
        """The first prompt that is encoded is the generation's; what follows may be a negative one."""
        if self._told:
            return
        name = self.layers.backbone.prompt[0][0].replace("tokenizer", "prompt")  # Flux attends to prompt_2
        prompts = arguments.get(name) or arguments.get("prompt") or self.given or []
        second = arguments.get("prompt_2") if name == "prompt" else None
        mixed = second is not None and texts(second) != texts(prompts)
        prompts = texts(prompts)
        read = getattr(self.pipe, "_text_preprocessing", None)  # PixArt's
        prompts = read(prompts, clean_caption=arguments.get("clean_caption", False)) if read and prompts else prompts
        self._begin(prompts, arguments.get("num_images_per_prompt") or 1)
        self._mixed = mixed

    def _drawn(self, arguments: Mapping[str, Any], result: Any) -> None:
        pictures = list(result) if not torch.is_tensor(result) else list(result.permute(0, 2, 3, 1))
        if pictures:
            self._drawn_size = drawn_size(pictures[0])
        if pictures and (isinstance(pictures[0], Image.Image) or pictures[0].shape[-1] == 3):
            self.pictures = [as_picture(picture) for picture in pictures]

    # ---- around the denoiser

    def _before(self, denoiser: Any, args: Any, kwargs: Any) -> None:
        family = self.layers.backbone
        try:
            call = family.read_call(denoiser, args, kwargs)
        except CallNotUnderstood as error:
            raise TraceError(str(error)) from None
        if call.timestep == self.timestep:  # one step calls it again: guidance, or SD 3 with layers left out
            self._views |= self._last is not None and not repeated(self._last, call)
            if not (family.text_comes_last and self._held is not None):
                return
            self._held = None  # what was seen is the half without the prompt
        else:
            self._settle()
            self.step, self.timestep, self._told = self.step + 1, call.timestep, False
        self._last = call
        if not self.chosen(self.step):
            return
        count, self.latents = len(self.prompts) or len(call.latents), call.side
        part = part_of(call, count, bool(getattr(self.pipe, "do_perturbed_attention_guidance", False)))
        part = 0 if family.text_is_first_half else part
        self._aggregator = Aggregator(dataclasses.replace(self.segmenter.plan(), grid=self._grid()))
        own = Conditional(self._aggregator, count)
        consumer = own if part is None else dataclasses.replace(own, part=part)
        tap = self.layers.tap(consumer, self.latents, call.beside)
        self._tap = tap.__enter__()

    @torch.no_grad()
    def _after(self, denoiser: Any, args: Any, output: Any) -> None:
        if self._tap is None:
            return
        tap, self._tap = self._tap, None
        failed = None if output is not None else RuntimeError
        tap.__exit__(failed, None, None)
        if failed is None:
            self._held = self._aggregator
            if not self.layers.backbone.text_comes_last:
                self._settle()
        del self._aggregator

    def _settle(self) -> None:
        """What was seen of a step enters the mean, once it is known that the step calls the denoiser no more."""
        if self._held is not None:
            self.capture.add(self._held)
        self._held = None

    def _grid(self) -> tuple[int, int]:
        """Cells as large as the config's, as many as the picture has room for; 3 at least, as the blur reflects two."""
        size = self.config.img_size
        usual = size if isinstance(size, tuple) else (size, size)
        cells = zip(self.config.grid, self._size(), usual)
        h, w = (max(3, round(count * side / full)) for count, side, full in cells)
        return h, w

    def _size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return picture_size(self.layers.parts, torch.empty(0, 1, *self.latents))

    # ---- afterwards

    @property
    def steps(self) -> int:
        """How many steps entered the mean."""
        return self.capture.count

    def attention(self, image: int = 0) -> Tensor:
        """Mean over the steps, heads and layers aggregated; sums to 1 over tokens   [g, g, N]"""
        self._settle()
        if self.capture.count == 0:
            seen = f"{self.step + 1} steps ran, and none of them was chosen" if self.step >= 0 else "no step ran"
            raise TraceError(f"nothing was traced: {seen}; call the pipeline inside the `with` block")
        self._refuse_views()
        if not 0 <= image < (count := len(maps := self.capture.attention_map())):
            raise TraceError(f"image {image} is not among the {count} generated pictures, counted from 0")
        return maps[image]

    def _refuse_views(self) -> None:
        """A picture that is not as large as what was denoised was denoised in views; or it was resized afterwards."""
        drawn = self._drawn_size
        resized = "use_resolution_binning" in inspect.signature(type(self.pipe).__call__).parameters
        if drawn in (None, self._size(), self.latents) or (resized and not self._views):
            return
        raise TraceError(
            "the pictures are {} x {}, but the denoiser saw them in views of {} x {} (a panorama?); only a generation "
            "that is denoised whole can be traced".format(*drawn, *self._size())  # type: ignore[misc]
        )

    def words(self, image: int = 0) -> list[str]:
        """The words of the prompt that name something."""
        return list(self.prompt_words(image).content)

    def word(self, word: str, image: int = 0) -> WordMap:
        """The map of a word, or of several in a row: mean over their tokens. Raises WordNotFound, TraceError."""
        attention, words = self.attention(image), self.prompt_words(image)
        length = attention.shape[-1]
        tokens = positions_in_text(words.positions(word), length)
        content = positions_in_text(sorted({*words.content_tokens, *tokens}), length)
        shown = rescale(attention, [tokens], content, self.config.rescale_method)[0]
        return WordMap(word, tuple(tokens), shown, attention[..., tokens].mean(-1), self._picture(image))

    def segment(self, words: str | Sequence[str] | None = None, image: int = 0) -> Segmentation:
        """The picture segmented by words of its prompt; the others, or nothing, are background.

        words   "dog, grass" or a list; None: every word that names something
        """
        wanted = [each for word in words.split(",") if (each := word.strip())] if isinstance(words, str) else words
        annotation, names = self.prompt_words(image).annotation(wanted)
        maps = self.segmenter.rescale(self.attention(image), annotation)
        scores = self.segmenter.refine(maps, self.capture, image, self._picture(image))
        ids = [*names, *[BACKGROUND] * (len(scores) - len(names))]
        labels = [names.get(class_id, "background") for class_id in ids]
        return Segmentation(scores, ids, labels, self._size(), self._picture(image))

    def prompt_words(self, image: int = 0) -> PromptWords:
        """The words of a prompt and their tokens, among as many as the denoiser was given."""
        self.attention(image)
        if image >= len(self.prompts):
            raise TraceError("the pipeline was given embeddings, so the words are unknown; give trace(pipe, prompt=)")
        length = self.attention(image).shape[-1]
        if self._mixed:
            raise TraceError(
                "prompt_2 is another text than prompt: each token stands for a word of both, so no word has a map of "
                "its own. Give one prompt"
            )
        family = self.layers.backbone
        try:
            known = family.tokenizers(self.layers.parts, length)
            if isinstance(known["tokenizer"], PromptReader):
                known["tokenizer"].refuse_other_length(self.prompts, exact=not family.text_is_first_half)
            return PromptWords(self.prompts[image], **known)
        except ExtractorError as error:
            raise TraceError(str(error)) from None

    def _picture(self, image: int) -> Any:
        return self.pictures[image] if image < len(self.pictures) else None


def texts(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def drawn_size(picture: Any) -> tuple[int, int]:
    """(height, width) of a picture of any kind, [h, w, c] where it is no PIL image."""
    return (picture.height, picture.width) if isinstance(picture, Image.Image) else tuple(picture.shape[:2])


def watch(owner: Any, name: str, tell: Callable[[Mapping[str, Any], Any], None]) -> Callable[[], None]:
    """Tells of every call of a method of this one object (its arguments, its result); returns what undoes that."""
    method, own = getattr(owner, name), vars(owner).get(name)
    signature = inspect.signature(method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: list(value) if isinstance(value, list) else value for name, value in bound.arguments.items()}
        result = method(*args, **kwargs)  # which may write into the lists that it is given
        tell(given, result)
        return result

    def undo() -> None:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    setattr(owner, name, watched)
    return undo
