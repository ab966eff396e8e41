"""Pictures to latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_feature.backbone import Parts
from diffusion_feature.devices import like
from diffusion_feature.errors import ExtractorError
from diffusion_feature.images import read_image

POSTERIORS = ("mean", "sample")


def read_picture(image: Any, size: int | tuple[int, int], palette_resize: str = "nearest") -> Tensor:
    """An image as the VAE wants it: stretched to `size`, RGB, [3, h, w] in -1..1.

    image           in any form that `read_image` takes
    size            one side of a square, or (height, width); resized bicubically
    palette_resize  palette images: resized by "nearest" neighbour and then converted to RGB, or "rgb" first
    """
    height, width = (size, size) if isinstance(size, int) else size
    read = read_image(image)
    resized = (read.stored if palette_resize == "nearest" else read.image).resize((width, height))
    pixels = np.asarray(resized.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 255 * 2 - 1


def vae_latents(parts: Parts, pictures: Tensor, posterior: str, generator: torch.Generator | None) -> Tensor:
    """pictures [B, 3, h, w] in -1..1 -> latents [B, c, h/f, w/f] in float32, shifted and scaled for the denoiser."""
    if posterior not in POSTERIORS:
        raise ExtractorError(f"posterior {posterior!r} is not known; there are: {', '.join(POSTERIORS)}")
    vae = parts["vae"]
    weight = like(vae)
    # the layout in which diffusers' own preprocessing hands pictures over; torch rounds differently in another
    pictures = pictures.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
    with one_cpu_thread():
        distribution = vae.encode(pictures).latent_dist
    latents = (distribution.mean if posterior == "mean" else spread(distribution, generator)).float()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((latents - shift) * vae.config.scaling_factor).contiguous()


@contextmanager
def one_cpu_thread() -> Iterator[None]:
    """On a CPU the group norms of a channels_last picture sum by thread: with one, their number changes nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def spread(distribution, generator: torch.Generator | None) -> Tensor:
    """A sample whose noise is drawn on the CPU, so that a seed means the same on every device."""
    mean, std = distribution.mean, distribution.std
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean)


def seeded(seed: int | None) -> torch.Generator:
    """A CPU generator; None seeds it afresh."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def picture_size(parts: Parts, latents: Tensor) -> tuple[int, int]:
    """The picture's (height, width) in pixels, from its latents [B, c, h, w]."""
    factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    return latents.shape[-2] * factor, latents.shape[-1] * factor
