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
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
)
from diffusion_feature.families.packed import pack, places, unpack
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from embedded.mini_model import (
    CONTEXT,
    LATENT_CHANNELS,
    LATENT_SIDE,
    WIDTH,
    WORDS,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    text_states,
)
from embedded.mini_tasks import Task, rectified_flow, velocity
from embedded.scene_drawing import SIZE
from embedded.scenes_hard import words_of_scenes_hard

TEXT = 32  # text tokens of the kinds that know both worlds
HEADS, HEAD_WIDTH = 4, 48  # of the transformers
FAMILY_WORDS = tuple(dict.fromkeys([*WORDS, *words_of_scenes_hard()]))
LETTERS = [*map(chr, range(97, 123)), *map(chr, range(65, 91)), *"0123456789.-()'"]


@dataclass
class Networks:
    """What is trained together, by part of the pipeline, and how it is used.

    task      clean latents, generator -> Task
    predict   noised latents, timesteps, captions -> prediction
    """

    modules: dict[str, nn.Module]
    task: Callable[[Tensor, torch.Generator], Task]
    predict: Callable[[Tensor, Tensor, list[str]], Tensor]


# --- text ----------------------------------------------------------------------------------------------------------


def build_t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces: each word of both worlds is one, anything else is spelt in letters."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", ",", *("\u2581" + word for word in FAMILY_WORDS), *LETTERS]
    vocabulary = [(piece, -6.0 if len(piece) == 1 else 0.0) for piece in pieces]
    return T5Tokenizer(vocabulary, extra_ids=0, model_max_length=TEXT)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


def t5_states(encoder: T5EncoderModel, tokenizer: T5Tokenizer, captions: list[str], masked: bool):
    """[B, TEXT, WIDTH] and the mask of real tokens [B, TEXT]; `masked`: real tokens do not see the padding."""
    tokens = tokenizer(captions, padding="max_length", max_length=TEXT, truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids.to(encoder.device), tokens.attention_mask.to(encoder.device)
    return encoder(ids, attention_mask=mask if masked else None)[0], mask


# --- fresh parts -----------------------------------------------------------------------------------------------------

Parts = dict[str, Any]


def stable_diffusion(channels: tuple[int, int], words: tuple[str, ...], context: int) -> Callable[[Path], Parts]:
    def build(folder: Path) -> Parts:
        tokenizer = build_tokenizer(folder / "tokenizer", words, context)
        text = build_text_encoder(tokenizer)
        return {
            "tokenizer": tokenizer,
            "text_encoder": text,
            "unet": build_unet(channels),
            "scheduler": build_scheduler(),
        }

    return build


def pixart(folder: Path) -> Parts:
    tokenizer = build_t5_tokenizer()
    text = build_t5(tokenizer)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=HEADS * HEAD_WIDTH,
        num_layers=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        caption_channels=WIDTH,
        sample_size=LATENT_SIDE,
        patch_size=1,
        norm_num_groups=8,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    zero(transformer.proj_out, *(block.attn2.to_out[0] for block in transformer.transformer_blocks))
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear", beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"
    )
    return {"tokenizer": tokenizer, "text_encoder": text, "transformer": transformer, "scheduler": scheduler}


def flux(folder: Path) -> Parts:
    tokenizer, tokenizer_2 = build_tokenizer(folder / "tokenizer", FAMILY_WORDS, TEXT), build_t5_tokenizer()
    clip, t5 = build_text_encoder(tokenizer), build_t5(tokenizer_2)
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        axes_dims_rope=(16, 16, 16),
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
    )
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    zero(transformer.proj_out, transformer.norm_out.linear, *(block.norm.linear for block in single))
    zero(*(norm.linear for block in double for norm in (block.norm1, block.norm1_context)))
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "text_encoder": clip,
        "text_encoder_2": t5,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def zero(*layers: nn.Linear) -> None:
    """What a block adds is nothing at first."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


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


def flux_networks(parts: Parts, device: torch.device) -> Networks:
    modules = {name: parts[name].to(device) for name in ("text_encoder", "text_encoder_2", "transformer")}
    clip, t5, transformer = modules.values()
    side = SIZE // 4
    image_places, text_places = places(side, side).to(device), torch.zeros(TEXT, 3, device=device)

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        states, _ = t5_states(t5, parts["tokenizer_2"], captions, masked=False)
        ids = parts["tokenizer"](captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        told = transformer(
            pack(noised),
            encoder_hidden_states=states,
            pooled_projections=clip(ids.to(device)).pooler_output,
            timestep=t,
            img_ids=image_places,
            txt_ids=text_places,
        )
        return unpack(told.sample, 2 * side, 2 * side)

    return Networks(modules, rectified_flow, predict)


@dataclass(frozen=True)
class Family:
    """A pipeline class: its networks, the parts that it may have and has not, how it is called beside the prompt.

    plain_attention  trained with softmax(QK) written out: on a CPU the fused attention's backward in bfloat16 is slow
    """

    pipeline: type[DiffusionPipeline]
    networks: Callable[[Parts, torch.device], Networks]
    without: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    plain_attention: bool = True

    def assemble(self, parts: Parts, vae: AutoencoderKL) -> DiffusionPipeline:
        return self.pipeline(**parts, **self.without, vae=vae)


SD = Family(
    StableDiffusionPipeline,
    sd_networks,
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
PIXART = Family(PixArtSigmaPipeline, pixart_networks, call={"use_resolution_binning": False, "clean_caption": False})
FLUX = Family(
    FluxPipeline,
    flux_networks,
    call={"height": 2 * SIZE, "width": 2 * SIZE, "max_sequence_length": TEXT},
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


def call_arguments(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Arguments with which a pipeline of the family is called, beside prompt, steps and guidance."""
    return dict(FAMILIES[type(pipe).__name__].call)


def guided(pipe: DiffusionPipeline, scale: float, batch: int) -> dict[str, Any]:
    """Arguments of a call with classifier-free guidance; Flux wants an empty negative prompt for each of the batch."""
    flux = type(pipe).__name__ == "FluxPipeline"
    own = {"true_cfg_scale": scale, "negative_prompt": [""] * batch} if flux else {"guidance_scale": scale}
    return own | call_arguments(pipe)
