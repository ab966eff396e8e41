"""`Backbone`: everything that differs between model families, as one record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.calls import Call, by_signature
from diffusion_feature.chat import PromptReader, Template
from diffusion_feature.errors import ExtractorError, PartMissing

JOINT = ("text-first", "image-first")  # layouts of joint attention
Parts = Mapping[str, Any]  # a pipeline's components by their names in model_index.json: "unet", "vae", "tokenizer", ...


def remedy(denoiser: str, processor: str) -> str:
    """How to restore torch's own attention in a denoiser, for messages.

    processor   the attention processor class that calls it, with its module
    """
    module, name = processor.rsplit(".", 1)
    return (
        f"Use torch's own attention: `from {module} import {name}` and `pipe.{denoiser}.set_attn_processor({name}())` "
        "(set_default_attn_processor() may set one that does without it); "
        f'`pipe.{denoiser}.set_attention_backend("native")` after another backend.'
    )


def no_tokens(image: int) -> int:
    return 0


PROCESSORS = "diffusers.models.attention_processor"
REMEDY = remedy("unet", f"{PROCESSORS}.AttnProcessor2_0")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of the denoiser.

    block      the block that it belongs to, e.g. "up-level1-repeat0-vit-block0"; `block + "-cross-map"` is a layer id
    layout     "self": image queries attend to image keys; "cross": image queries attend to text keys;
               "text-first", "image-first": all tokens attend to all tokens (joint attention), in that order
    out_proj   the output projection's weight, without bias   [D, H*d]
    weighed    False: head weighting is not supported, and heads are averaged under every head rule
    own        joint attention: number of image tokens -> number of tokens before the text that are neither text nor
               image: registers, or padding of the image
    """

    block: str
    layout: str
    module: nn.Module
    out_proj: Callable[[], Tensor]
    weighed: bool = True
    own: Callable[[int], int] = no_tokens

    @property
    def maps(self) -> tuple[str, ...]:
        """Layer ids of the attention maps of this module."""
        kinds = ("cross", "self") if self.layout in JOINT else (self.layout,)
        return tuple(f"{self.block}-{kind}-map" for kind in kinds)


@dataclass(frozen=True)
class DenseFeature:
    """A module whose output is a feature: image tokens are reshaped to [B, C, h, w], text tokens stay [B, N, C].

    tokens   tokens in the output: "image", "text", or both ("text-first", "image-first"; the feature is the image's)
    part     index of the output, if the module returns several tensors
    before   whether the feature is the module's first input instead of its output
    channels number of leading channels that form the feature; None: all
    """

    module: nn.Module
    tokens: str = "image"
    part: int = 0
    before: bool = False
    channels: int | None = None


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of the denoiser.

    arguments   keyword arguments of the denoiser's forward
    length      number of text tokens N
    cut         for each prompt, the text that did not fit
    """

    arguments: dict[str, Any]
    length: int
    cut: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NoiseLevel:
    """Noise level: x_t = signal * x_0 + noise * e, and the timestep that the denoiser is given.

    as_pipeline   whether the timestep is rounded to the denoiser's dtype, as in the pipeline
    flow          rectified flow: the denoiser predicts a velocity, whatever the scheduler's prediction_type
    """

    timestep: float
    signal: float
    noise: float
    as_pipeline: bool = False
    flow: bool = False


@dataclass(frozen=True)
class Backbone:
    """One family of denoisers: where its layers are, how it is conditioned and how noise is added."""

    name: str
    denoiser: str  # the component with the attention: "unet" or "transformer"
    kind: str  # its class in diffusers
    parts: tuple[str, ...]  # required components, the denoiser first; no others are loaded
    prompt: tuple[tuple[str, int | None], ...]  # tokenizers of the attended text tokens, and lengths (None: its own)
    layers: Callable[[nn.Module], list[AttentionLayer]]
    features: Callable[[nn.Module], dict[str, DenseFeature]]
    encode_text: Callable[[Parts, list[str]], Conditioning]
    encode_image: Callable[[Parts, Tensor, str, torch.Generator | None], Tensor]
    noise_level: Callable[[Any, int, str, tuple[int, int]], NoiseLevel]  # scheduler, t, rule, latents' (h, w)
    denoise: Callable[[Parts, Tensor, NoiseLevel, Conditioning], Tensor]
    accepts: Callable[[nn.Module], bool] = lambda denoiser: True  # a check beyond the class
    old_kinds: tuple[str, ...] = ()  # former class names in published folders; diffusers loads them as `kind`
    optional: tuple[str, ...] = ()  # components that are loaded if the pipeline has them
    patch: int = 1  # joint attention: side of an image token, in latent pixels
    processor: str = f"{PROCESSORS}.AttnProcessor2_0"  # the processor class that calls torch's own attention
    half: torch.dtype = torch.float16  # the dtype of "auto" on an accelerator
    template: Template | None = None  # the text around the prompt of a language model
    left_alone: tuple[str, ...] = ()  # paths (fnmatch) of attention modules without maps, such as text refiners
    call: Callable[[Mapping[str, Any], int], Call] = by_signature  # (the denoiser's arguments, patch) -> their meaning
    text_comes_last: bool = False  # guidance calls the denoiser twice per step; the second call has the prompt
    time_is_reversed: bool = False  # rectified flow: timestep 0 is noise, and the velocity points to the image
    text_is_first_half: bool = False  # guidance doubles the batch; the first half has the prompt
    # (components, arguments of encode_text) -> the text states given to cross-attention [B, N, c]; None: unknown
    attended: Callable[[Parts, Mapping[str, Any]], Tensor] | None = None

    @property
    def remedy(self) -> str:
        """How to restore attention that the tap can see, for messages."""
        return remedy(self.denoiser, self.processor)

    def read_call(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Interpret the arguments of a denoiser's forward method. Raises CallNotUnderstood."""
        given = inspect.signature(type(denoiser).forward).bind_partial(denoiser, *args, **kwargs).arguments
        return self.call(given, self.patch)

    def tokenizers(self, parts: Parts, given: int | None = None) -> dict[str, Any]:
        """The tokenizers whose tokens are attended to, in order, and their max_lengths (None: its own).

        given   number of text tokens that the denoiser got, if a call may use another number than usual
        errors  PartMissing; ExtractorError for a number that the tokenizers cannot produce
        """
        found: dict[str, Any] = {}
        for (name, length), suffix in zip(self.prompt, ("", "_2")):
            if name not in parts:
                raise PartMissing(f"no {name!r} among {', '.join(parts)}: this is not the pipeline of a {self.name}")
            reader = parts[name] if self.template is None else PromptReader(parts[name], self.template, given)
            found |= {f"tokenizer{suffix}": reader, f"max_length{suffix}": length}
        if given is not None and len(self.prompt) == 1:
            usual = self.prompt[0][1] or found["tokenizer"].model_max_length
            if self.prompt[0][1] is not None:
                found["max_length"] = given  # the call's max_sequence_length
            elif given < usual or (given > usual and self.patch == 1):  # more are T5's, in joint attention
                raise ExtractorError(
                    f"the denoiser was given {given} text tokens where the tokenizer makes {usual}, so which token is "
                    "whose is not known: a weighted or joined prompt's embeddings? Give the pipeline the prompt itself"
                )
        return found
