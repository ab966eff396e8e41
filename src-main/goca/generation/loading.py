"""Load a whole text-to-image pipeline, to generate images with it."""

from __future__ import annotations

from typing import Any

import torch
from diffusion_feature.families import backbone
from diffusion_feature.loading import pick_device, pick_dtype
from diffusion_feature.reading import named_error, read_pipeline

from goca.config import SegmenterConfig
from goca.embedded import resolve


def load_pipeline(
    location: str,
    config: SegmenterConfig,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    denoiser: str | None = None,
) -> Any:
    """A diffusers pipeline on its device, without progress bars of its own.

    location       a folder, a hub id or "goca:NAME"
    config         names the family, which says the dtype of "auto" on an accelerator
    device, dtype  as for `Segmenter.from_pretrained`
    denoiser       a second folder or hub id, whose denoiser replaces the pipeline's
    raises         ExtractorError, OSError
    """
    device, family = pick_device(device), backbone(config.version)
    with named_error(f"{location}: the pipeline cannot be read"):
        pipe = read_pipeline(resolve(location), family, pick_dtype(dtype, device, family.half), denoiser=denoiser)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
