"""`SemanticGuidance`: guides a stock diffusers pipeline by regions, within a context.

The pipeline combines its two halves as uncond + scale * (text - uncond). A forward hook on the denoiser replaces text
by uncond + rate * (text - uncond), so the pipeline's own formula yields the guidance of each pixel, with any scheduler.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusion_feature import Consumer, FeatureExtractor, PromptCut
from diffusion_feature.calls import Call
from diffusion_feature.families import backbone
from diffusion_feature.loading import parts_of
from torch import Tensor

from goca.config import SegmenterConfig, load_config
from goca.generation.adapters import PipelineLayers
from goca.generation.attached import AttachedPipeline, is_observed
from goca.guidance.rate import GuidanceError, check_scale, guidance_rate
from goca.guidance.segmentors import SEGMENTORS, PromptTokens, Segmentor
from goca.prompts import blanked
from goca.prompts.tokens import Token, tokenise
from goca.segmenter import Segmenter

# denoiser -> how its pipeline changes a prompt before tokenisation
READ = {"PixArtTransformer2DModel": lambda prompt: prompt.lower().strip()}

LONG = 100_000  # tokens; longer than any prompt


class SemanticGuidance:
    """A context in which `pipe(prompt, ...)`, or a direct call of its denoiser on [uncond, text], is guided by regions.

    pipe            a diffusers pipeline that guides by doubling its batch: Stable Diffusion 1 and 2, SDXL, PixArt, ...
    config          settings of the method: a name in configs/model, a mapping of fields or a SegmenterConfig
    prompt          the prompt, or list of prompts, with which the pipeline will be called
    segmentor       "goca", "s-cfg", or an object with the methods of `Segmentor`; None: plain guidance
    guidance_scale  None: that of the pipeline's call; for a denoiser called directly, that of the pipeline's last
                    call, or else the pipeline's default

    After each call of the denoiser: `token_mask` [B, N, g, g], `foreground_mask` [B, 1, g, g], `rate` [B, 1, h, w],
    for the B images in the order of the pipeline (images of the same prompt are adjacent).
    Outside the context the pipeline is unchanged. guidance_rescale must be 0.
    errors          GuidanceError; those of load_config and FeatureExtractor
    warns           PromptCut if a prompt is longer than the text encoder's limit
    """

    token_mask: Tensor | None = None
    foreground_mask: Tensor | None = None
    rate: Tensor | None = None

    def __init__(
        self,
        pipe: Any,
        config: str | Mapping[str, Any] | SegmenterConfig,
        prompt: str | Sequence[str],
        segmentor: str | Segmentor | None = "goca",
        guidance_scale: float | None = None,
    ):
        self.pipe, self.prompts = pipe, [prompt] if isinstance(prompt, str) else list(prompt)
        self.guidance_scale, self.call_scale = guidance_scale, None
        self.halves_seen = (
            False  # whether the batch's halves were compared; once per call, since it makes an accelerator wait
        )
        self.latents: tuple[int, int] = (0, 0)  # (h, w) of the current forward pass
        self.segmentor: Segmentor | None = None
        if segmentor is None:
            return
        if guidance_scale is not None:
            check_scale(guidance_scale)
        segmenter = segmenter_of(pipe, load_config(config))
        self.extractor = segmenter.extractor
        self.attached = AttachedPipeline(pipe, self.extractor)
        self.tokens = [prompt_tokens(each, self.extractor) for each in self.prompts]
        self.segmentor = named_segmentor(segmentor, segmenter) if isinstance(segmentor, str) else segmentor

    def __enter__(self) -> SemanticGuidance:
        if self.segmentor is not None:
            if is_observed(self.pipe):
                raise GuidanceError("this pipeline is already guided by regions; leave the other context first")
            self.attached.observe_call(self._called)
            self.attached.hook(self._before, self._after)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.segmentor is not None:
            self.attached.detach()

    # ---- the pipeline's call

    def _called(self, arguments: Mapping[str, Any]) -> None:
        prompt, scale = arguments.get("prompt"), arguments.get("guidance_scale")
        if prompt is not None and ([prompt] if isinstance(prompt, str) else list(prompt)) != self.prompts:
            raise GuidanceError(
                f"the context was made for {self.prompts!r}, but the pipeline was called with {prompt!r}"
            )
        second = arguments.get("prompt_2")
        if second is not None and ([second] if isinstance(second, str) else list(second)) != self.prompts:
            raise GuidanceError(f"prompt_2 is {second!r}: each token would stand for a word of both prompts; give one")
        if arguments.get("guidance_rescale"):
            rescale = arguments["guidance_rescale"]
            raise GuidanceError(
                f"guidance_rescale is {rescale}; it would rescale the text half after guidance by regions: use 0"
            )
        if scale is None:
            raise GuidanceError(f"{type(self.pipe).__name__} has no guidance_scale, so it cannot be guided")
        check_scale(scale)
        self.call_scale, self.halves_seen = scale, False
        if prompt is not None and (read := getattr(self.pipe, "_text_preprocessing", None)):  # PixArt's
            texts = read(self.prompts, clean_caption=arguments.get("clean_caption", False))
            length = arguments.get("max_sequence_length")
            self.tokens = [prompt_tokens(text, self.extractor, length) for text in texts]

    @property
    def scale(self) -> float:
        """The guidance scale from which rates are computed."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        if self.call_scale is not None:
            return self.call_scale
        last = getattr(self.pipe, "_guidance_scale", None)
        found = last if last is not None else default_scale(type(self.pipe))
        check_scale(found)
        return found

    # ---- one forward of the denoiser

    def _before(self, call: Call) -> Consumer:
        self._check_batch(call.latents)
        assert self.segmentor is not None
        self.latents = call.side
        return self.segmentor.consumer(call.side)

    @torch.no_grad()
    def _after(self, consumer: Consumer, output: Any) -> Any:
        assert self.segmentor is not None
        sample = sample_of(output)
        uncond, text = self._maps(sample).chunk(2)  # [B, C, h, w]
        copies = len(text) // len(self.tokens)
        tokens = [each for each in self.tokens for _ in range(copies)]
        self.token_mask, self.foreground_mask = self.segmentor.masks(consumer, tokens)
        self.rate = guidance_rate(uncond, text, self.token_mask, self.foreground_mask, self.scale)
        guided = uncond + self.rate.to(text) * (text - uncond)
        both = torch.cat([uncond, guided])
        return with_sample(output, both if sample.ndim == 4 else both.flatten(2).transpose(1, 2))

    def _maps(self, sample: Tensor) -> Tensor:
        """The denoiser's output as maps; tokens [B, S, C] become one pixel each   [B, C, h, w]"""
        if sample.ndim == 4:
            return sample
        h, w = (side // self.extractor.backbone.patch for side in self.latents)
        return sample.transpose(1, 2).unflatten(2, (h, w))

    def _check_batch(self, sample: Tensor) -> None:
        half, odd = divmod(len(sample), 2)
        if odd or half == 0 or half % len(self.prompts):
            raise GuidanceError(
                f"the denoiser got {len(sample)} latents for {len(self.prompts)} prompts; expected an unconditional "
                "and a text half of as many images each. A distilled model, or a guidance scale of 1, has no halves."
            )
        if self.halves_seen:
            return
        self.halves_seen = True
        if not torch.equal(sample[:half], sample[half:]):
            raise GuidanceError(
                "the two halves of the denoiser's batch have different latents, so they are not the unconditional and "
                "the text half of the same images"
            )


def default_scale(kind: type) -> float:
    parameter = inspect.signature(kind.__call__).parameters.get("guidance_scale")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        raise GuidanceError(f"{kind.__name__} has no default guidance scale; give guidance_scale=...")
    return parameter.default


def segmenter_of(pipe: Any, config: SegmenterConfig) -> Segmenter:
    """The method on the pipeline's own denoiser. Raises GuidanceError, WrongFamily, PartMissing."""
    family = backbone(config.version)
    denoiser: Any = parts_of(pipe, family)[family.denoiser]
    if (width := getattr(getattr(denoiser, "config", None), "time_cond_proj_dim", None)) is not None:
        raise GuidanceError(f"{type(pipe).__name__} is distilled (time_cond_proj_dim {width}): it has no guidance")
    layers = PipelineLayers(pipe, config.version)
    layers.refuse_further_inputs()
    return Segmenter(layers, config)


def named_segmentor(name: str, segmenter: Segmenter) -> Segmentor:
    if name not in SEGMENTORS:
        raise GuidanceError(f"unknown segmentor {name!r}; expected one of: {', '.join(SEGMENTORS)}, None, or an object")
    return SEGMENTORS[name](segmenter)


def prompt_tokens(prompt: str, extractor: FeatureExtractor, length: int | None = None) -> PromptTokens:
    """The token positions of a prompt's words. Raises GuidanceError if there are none.

    length   number of text tokens given to the denoiser; None: the family's usual number
    """
    known = extractor.backbone.tokenizers(extractor.parts, length)
    tokenizers = [known[name] for name in ("tokenizer", "tokenizer_2") if name in known]
    lengths = [known[name] for name in ("max_length", "max_length_2") if name in known]
    read = READ.get(type(extractor.denoiser).__name__, str)(prompt)
    tokens = tokenise(read, tokenizers, lengths)
    unweighted = blanked(read)  # the digits of a weight have no region
    words = [
        token
        for token in tokens
        if is_word(token) and (unweighted[slice(*token.span)].strip() or not read[slice(*token.span)].strip())
    ]
    if not words:
        raise GuidanceError(f"the prompt {prompt!r} contains no words; guidance by regions needs at least one")
    whole = tokenise(read, tokenizers, [LONG] * len(lengths))
    if len(whole) > len(tokens):
        cut = read[words[-1].span[1] :].strip()
        warnings.warn(PromptCut(prompt, cut, tokens[-1].position + 1), stacklevel=3)
    sentence = next((token.position for token in tokens if token.kind == "global"), tokens[-1].position)
    return PromptTokens(tuple(token.position for token in words), sentence)


def is_word(token: Token) -> bool:
    """Whether a token belongs to a word; a word mark that stands alone counts."""
    return token.kind == "word" or (token.kind == "special" and not token.piece)


def sample_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample


def with_sample(output: Any, sample: Tensor) -> Any:
    """The same kind of output with another sample."""
    return (sample, *output[1:]) if isinstance(output, tuple) else dataclasses.replace(output, sample=sample)
