"""Encode images to latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffusion_feature.backbone import Parts
from diffusion_feature.devices import dtype_of, like
from diffusion_feature.errors import ExtractorError
from diffusion_feature.images import read_image
from diffusion_feature.modules import in_float32
from diffusion_feature.renamed import former_names
from diffusion_feature.vaes import kind_of

POSTERIORS = ("mean", "sample")  # recorded outputs use the latter
STEADY = 512 * 512  # pixels up to which an image is encoded with one thread; larger images would take too long


def preprocess(image: Any, size: int | tuple[int, int], palette_resize: str = "nearest") -> Tensor:
    """An image as input of the VAE: resized to `size`, RGB, [3, h, w] in -1..1.

    image           in any form that `read_image` takes
    size            one side of a square, or (height, width); resized bicubically
    palette_resize  palette images: resized by "nearest" neighbour and then converted to RGB, or "rgb" first
    """
    height, width = (size, size) if isinstance(size, int) else size
    read = read_image(image)
    resized = (read.stored if palette_resize == "nearest" else read.image).resize((width, height))
    pixels = np.asarray(resized.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 255 * 2 - 1


def vae_latents(
    parts: Parts, images: Tensor, posterior: str, generator: torch.Generator | None, shifted: bool = True
) -> Tensor:
    """images [B, 3, h, w] in -1..1 -> latents [B, c, h/f, w/f] in float32, shifted and scaled for the denoiser.

    shifted   False: scaled only, whatever the VAE's config says
    """
    if posterior not in POSTERIORS:
        raise ExtractorError(f"unknown posterior {posterior!r}; expected one of: {', '.join(POSTERIORS)}")
    vae = parts["vae"]
    encoded = encode_safely(vae, images, steady=posterior == "sample" or images[0, 0].numel() <= STEADY)
    if hasattr(encoded, "latent_dist"):
        mean = encoded.latent_dist.mean
        latents = (mean if posterior == "mean" else spread(encoded.latent_dist, generator)).float()
    else:
        latents = without_posterior(encoded).float()
    kind = kind_of(vae)
    if not shifted:
        return (latents * vae.config.scaling_factor).contiguous()
    return kind.latents(vae, latents.squeeze(2) if kind.frames else latents).contiguous()


def without_posterior(encoded: Any) -> Tensor:
    """The latents of a VAE that has no posterior: a tiny autoencoder (`latents`), AutoencoderDC (`latent`)."""
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def encode_safely(vae: Any, images: Tensor, steady: bool = True) -> Any:
    """Encode in the VAE's own dtype, or in float32 where that overflows. Raises ExtractorError.

    steady   see `encode`
    """
    half = dtype_of(vae) == torch.float16
    if not (half and getattr(vae.config, "force_upcast", False)):
        encoded = encode(vae, images, steady)
        if is_finite(encoded):
            return encoded
    with in_float32(vae):
        encoded = encode(vae, images, steady)
    if not is_finite(encoded):
        raise ExtractorError(
            f"the VAE's latents are not finite numbers: in {dtype_of(vae)} it overflows, or its weights are damaged. "
            "Hand it over in float32: `pipe.vae.to(torch.float32)`, before offloading is enabled"
        )
    return encoded


def encode(vae: Any, images: Tensor, steady: bool = True) -> Any:
    """Encode in the VAE's current dtype.

    steady   on a CPU: with one thread, so that the number of threads changes no bit
    """
    # the layout of diffusers' own preprocessing; torch rounds differently in another one
    images = images.to(like(vae)).contiguous(memory_format=torch.channels_last)
    images = images[:, :, None] if kind_of(vae).frames else images
    with one_cpu_thread() if steady and images.device.type == "cpu" else nullcontext():
        return vae.encode(images)


def is_finite(encoded: Any) -> bool:
    found = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else without_posterior(encoded)
    return bool(found.isfinite().all())


@contextmanager
def one_cpu_thread() -> Iterator[None]:
    """Use one CPU thread: group norms of channels_last images sum per thread, so results depend on the thread count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def spread(distribution, generator: torch.Generator | None) -> Tensor:
    """Sample with noise drawn on the CPU, so that a seed gives the same sample on every device."""
    mean, std = distribution.mean, distribution.std
    return mean + std * torch.randn(mean.shape, generator=generator).to(mean)


def seeded(seed: int | None) -> torch.Generator:
    """A CPU generator; None: seeded randomly."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def size_in_pixels(parts: Parts, latents: Tensor) -> tuple[int, int]:
    """The image's (height, width) in pixels, from its latents [B, c, h, w]."""
    factor = kind_of(parts["vae"]).factor(parts["vae"].config)
    return latents.shape[-2] * factor, latents.shape[-1] * factor


if not TYPE_CHECKING:  # a type checker would take any name for one of the module's
    __getattr__ = former_names(__name__, {"read_picture": "preprocess", "picture_size": "size_in_pixels"})
