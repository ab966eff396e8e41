"""The kinds of small models that train_mini.py trains: networks, what they learn to predict, and their pipelines.

mini-sd         StableDiffusionPipeline, velocities on SD1.5's betas; nouns of scenes only
mini-sd-small   the same with half the channels, words of both worlds
mini-pixart     PixArtSigmaPipeline: self- and cross-attention on 16 x 16 tokens, a small T5; velocities, PixArt's betas
mini-flux       FluxPipeline: double- and single-stream blocks on 16 x 16 tokens, T5 and pooled CLIP; rectified flow,
                on images of 128 x 128
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusionPipeline,
)
from diffusion_feature.families.packed import pack, places, unpack
from goca.config import load_config
from goca.generation.adapters import config_of
from goca.generation.calling import call_arguments
from torch import Tensor, nn

from embedded.mini_model import (
    CONTEXT,
    WORDS,
    build_vae,
    text_states,
)
from embedded.mini_parts import FAMILY_WORDS, TEXT, Parts, flux, pixart, stable_diffusion, t5_states
from embedded.mini_tasks import Task, rectified_flow, velocity
from embedded.pen import SIZE


@dataclass
class Networks:
    """What is trained together, by part of the pipeline, and how it is used.

    task      clean latents, generator -> Task
    predict   noised latents, timesteps, captions -> prediction
    """

    modules: dict[str, nn.Module]
    task: Callable[[Tensor, torch.Generator], Task]
    predict: Callable[[Tensor, Tensor, list[str]], Tensor]


# --- what they learn, from fresh parts or those of a finished pipeline -----------------------------------------------


def sd_networks(parts: Parts, device: torch.device) -> Networks:
    text, tokenizer = parts["text_encoder"].to(device), parts["tokenizer"]
    unet = parts["unet"].to(device, memory_format=torch.channels_last)

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        noised = noised.contiguous(memory_format=torch.channels_last)
        return unet(noised, t, text_states(text, tokenizer, captions)).sample

    task = velocity(parts["scheduler"].alphas_cumprod.to(device))
    return Networks({"text_encoder": text, "unet": unet}, task, predict)


def pixart_networks(parts: Parts, device: torch.device) -> Networks:
    text, tokenizer, transformer = parts["text_encoder"].to(device), parts["tokenizer"], parts["transformer"].to(device)
    size = {"resolution": None, "aspect_ratio": None}

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        states, mask = t5_states(text, tokenizer, captions, masked=True)
        return transformer(noised, states, t, added_cond_kwargs=size, encoder_attention_mask=mask).sample

    task = velocity(parts["scheduler"].alphas_cumprod.to(device), spread=(-0.5, 1.0), cap=5.0)
    return Networks({"text_encoder": text, "transformer": transformer}, task, predict)


def spread_places(side: int) -> Tensor:
    """`places` of side x side tokens in the coordinates of a whole image's 16 x 16   [side^2, 3]"""
    factor = SIZE // 4 / side
    return places(side, side) * torch.tensor([1, factor, factor]) + torch.tensor([0, factor - 1, factor - 1]) / 2


def flux_networks(parts: Parts, device: torch.device) -> Networks:
    modules = {name: parts[name].to(device) for name in ("text_encoder", "text_encoder_2", "transformer")}
    clip, t5, transformer = modules.values()
    text_places = torch.zeros(TEXT, 3, device=device)

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        states, _ = t5_states(t5, parts["tokenizer_2"], captions, masked=False)
        ids = parts["tokenizer"](captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        told = transformer(
            pack(noised),
            encoder_hidden_states=states,
            pooled_projections=clip(ids.to(device)).pooler_output,
            timestep=t,
            img_ids=spread_places(noised.shape[-1] // 2).to(device),
            txt_ids=text_places,
        )
        return unpack(told.sample, *noised.shape[-2:])

    return Networks(modules, rectified_flow, predict)


@dataclass(frozen=True)
class Family:
    """A pipeline class: its networks, the parts that it may have and has not.

    plain_attention  trained with softmax(QK) written out where a CPU trains in bfloat16: the fused attention's
                     backward is slow there
    """

    pipeline: type[DiffusionPipeline]
    networks: Callable[[Parts, torch.device], Networks]
    without: dict[str, Any] = field(default_factory=dict)
    plain_attention: bool = True

    def assemble(self, parts: Parts, vae: AutoencoderKL) -> DiffusionPipeline:
        return self.pipeline(**parts, **self.without, vae=vae)


SD = Family(
    StableDiffusionPipeline,
    sd_networks,
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
PIXART = Family(PixArtSigmaPipeline, pixart_networks)
FLUX = Family(
    FluxPipeline,
    flux_networks,
    plain_attention=False,
)
FAMILIES = {family.pipeline.__name__: family for family in (SD, PIXART, FLUX)}


# --- the kinds -------------------------------------------------------------------------------------------------------

BORROWED = "goca:mini-sd"


@dataclass(frozen=True)
class Kind:
    """One model of the family.

    parts     (folder for tokenizers) -> fresh parts of the pipeline, all but the VAE
    vae       how its VAE is built, or "goca:NAME" to borrow that one's
    denoiser  the trained part that the checkpoint and the loss curve are named after
    worlds    world -> training images
    enlarge   factor by which images are enlarged before they are encoded. Flux packs 2 x 2 latents into a token, so
              with the borrowed VAE 16 x 16 tokens need an image of twice the side
    """

    family: Family
    parts: Callable[[Path], Parts]
    vae: Callable[[], AutoencoderKL] | str
    denoiser: str
    worlds: dict[str, int]
    enlarge: int = 1

    @property
    def image_side(self) -> int:
        """Of the images that the pipeline takes and makes, in pixels."""
        return self.enlarge * SIZE


BOTH = {"scenes": 12_000, "scenes-hard": 28_000}
KINDS: dict[str, Kind] = {
    "mini-sd": Kind(SD, stable_diffusion((96, 128), tuple(WORDS), CONTEXT), build_vae, "unet", {"scenes": 40_000}),
    "mini-sd-small": Kind(SD, stable_diffusion((48, 64), FAMILY_WORDS, TEXT), BORROWED, "unet", BOTH),
    "mini-pixart": Kind(PIXART, pixart, BORROWED, "transformer", BOTH),
    "mini-flux": Kind(FLUX, flux, BORROWED, "transformer", BOTH, enlarge=2),
}


def networks_of(pipe: DiffusionPipeline, device: torch.device) -> Networks:
    """Those of a pipeline of the family, to measure its loss."""
    return FAMILIES[type(pipe).__name__].networks(pipe.components, device)


def guided(pipe: DiffusionPipeline, scale: float, batch: int) -> dict[str, Any]:
    """Arguments of a call with classifier-free guidance, as the model's config has them."""
    return call_arguments(load_config(config_of(pipe)), batch, scale)
