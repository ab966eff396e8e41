"""Presence by denoising: the prompt of a present word predicts the noise better than all others at some pixel.

For the prompt n of one word, noise e and timestep t, with the denoiser's target (`diffusion_feature.noise.target`):

    err_n(s) = mean over channels, and over noise draws, of (prediction_n(s) - target(s))^2
    r_n(s)   = mean over t of (mean over words of err(s) - err_n(s)) / std_t, then a Gaussian blur
    gain_n   = max over s of (r_n(s) - max over other words m of r_m(s))

std_t is the standard deviation over words and pixels. This applies the diffusion classifier (Li et al.,
arXiv 2303.16203) to each pixel instead of the whole image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import torch
from diffusion_feature.errors import PromptCut, naming
from diffusion_feature.extractor import side
from diffusion_feature.images import read_image
from diffusion_feature.latents import seeded
from diffusion_feature.modules import as_for_inference
from diffusion_feature.noise import target
from torch import Tensor

from goca.method.rescaling import divide
from goca.schema import Count, Filled, Range

if TYPE_CHECKING:
    from goca.requests import ImageLike
    from goca.segmenter import Segmenter

BATCH = 16  # prompts per forward pass; fewer if `max_bytes` requires it


@dataclass(frozen=True)
class Denoising:
    """Options of the probe: the config's field `denoising`.

    t           timesteps 0..999
    draws       noise draws for each timestep, seeded by the image's id
    blur        standard deviation of the Gaussian blur, in latent pixels
    slope, midpoint    parameters of `goca.open.presence.probability`, applied to exp(gain)
    least       classes with a lower probability are absent
    """

    t: Annotated[tuple[Annotated[int, Range(1, 999)], ...], Filled()] = (300, 500, 700)
    draws: Count = 2
    blur: Annotated[float, Range(0.1, 1000)] = 1.5
    slope: Annotated[float, Range(0)] = 25.0
    midpoint: Annotated[float, Range(1e-6)] = 1.136
    least: Annotated[float, Range(0, 1)] = 0.33


def gain(errors: Tensor, blur: float) -> Tensor:
    """How much better each word predicts the noise at its best pixel than every other word   [W]

    errors   squared errors of W >= 2 prompts at T timesteps   [W, T, h, w]
    blur     standard deviation, in latent pixels
    returns  positive if a word is the best at some pixel; dimensionless
    """
    centred = errors.mean(0) - errors
    spread = centred.std((0, 2, 3), correction=0)  # [T]
    r = divide(centred, spread[:, None, None]).mean(1)  # [W, h, w]
    rows, columns = (gaussian_rows(side, blur).to(r) for side in r.shape[1:])
    r = rows @ r @ columns.T
    first, second = r.topk(2, dim=0).values  # [h, w]
    best_other = torch.where(r == first, second, first)
    return (r - best_other).amax((1, 2))


def gaussian_rows(side: int, sigma: float) -> Tensor:
    """A Gaussian blur along one axis, as a matrix whose rows sum to 1   [side, side]"""
    places = torch.arange(side)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


@torch.no_grad()
def word_errors(
    segmenter: Segmenter,
    images: Sequence[ImageLike],
    words: Sequence[Sequence[str]],
    image_ids: Sequence[str | None],
    options: Denoising,
) -> list[Tensor]:
    """Squared errors of the denoiser with one prompt per word.

    words      prompts of each image; they share forward passes
    image_ids  determine the noise, so an image's errors depend neither on the batch nor on the order
    returns    per image   [W, T, h, w], mean over channels and draws
    warns      PromptCut if a word is longer than the text encoder's limit
    """
    extractor, protocol = segmenter.extractor, segmenter.protocol
    generators = [seeded(seed) for seed in segmenter.seeds(images, image_ids)]
    read = [read_image(image).stored for image in images]
    texts = segmenter.texts([word for own in words for word in own])
    places = [number for number, own in enumerate(words) for _ in own]
    errors: list[Any] = [None] * len(texts)
    with as_for_inference(extractor.parts):
        latents = extractor.encode_images(read, protocol.posterior, generators, protocol.palette_resize)
        shape = (len(options.t), options.draws, *latents.shape[1:])
        drawn = [torch.randn(shape, generator=each) for each in generators]
        noise = torch.stack(drawn).to(latents)  # [B, T, D, c, h, w]
        for batch in batches(texts, extractor.text_length, segmenter.budget.next_batch):
            own = [places[number] for number in batch]
            found = batch_errors(segmenter, [texts[number] for number in batch], latents[own], noise[own], options.t)
            for number, error in zip(batch, found, strict=True):
                errors[number] = error
    return list(torch.stack(errors).split([len(own) for own in words]))


def batch_errors(
    segmenter: Segmenter, texts: Sequence[str], latents: Tensor, noise: Tensor, timesteps: Sequence[int]
) -> Tensor:
    """Squared errors of one batch of prompts   [B, T, h, w]; latents [B, c, h, w], noise [B, T, D, c, h, w]"""
    extractor, protocol = segmenter.extractor, segmenter.protocol
    backbone, parts = extractor.backbone, extractor.parts
    with naming("text encoder or tokenizer", ValueError):
        conditioning = backbone.encode_text(parts, list(texts))
    for number, cut in enumerate(conditioning.cut):
        if cut:
            warnings.warn(PromptCut(texts[number], cut, conditioning.length, number), stacklevel=3)
    errors = []
    for number, t in enumerate(timesteps):
        with naming("scheduler"):
            level = backbone.noise_level(parts["scheduler"], t, protocol.noise, side(latents))
        draws = []
        for drawn in noise[:, number].unbind(1):
            wanted = target(parts["scheduler"], level, latents, drawn, backbone.time_is_reversed)
            with naming(extractor.where):
                found = backbone.denoise(parts, level.signal * latents + level.noise * drawn, level, conditioning)
            found = found[:, : latents.shape[1]].float()  # without the learnt variance
            draws.append((found - wanted).square().mean(1))
        errors.append(torch.stack(draws).mean(0))
    return torch.stack(errors, 1)


def batches(
    texts: Sequence[str], length: Callable[[str], int | None], admitted: Callable[[int], int]
) -> Iterator[list[int]]:
    """Indices of texts that share a forward pass: at most BATCH, within the budget, of the same length in tokens."""
    lengths = [length(text) or 0 for text in texts]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for _, group in groupby(order, key=lengths.__getitem__):
        left = list(group)
        while left:
            count = admitted(min(len(left), BATCH))
            yield left[:count]
            left = left[count:]


# rules of presence that need their own forward passes
PROBES: dict[str, Callable[[Tensor, float], Tensor]] = {"denoising gain": gain}
