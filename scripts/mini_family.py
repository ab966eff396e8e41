"""The kinds of small models that train_mini.py trains: networks, what they learn to predict, and their pipelines.

mini-sd         StableDiffusionPipeline, velocities on SD1.5's betas; nouns of scenes only
mini-sd-small   the same with half the channels, words of both worlds
mini-pixart     PixArtSigmaPipeline: self- and cross-attention on 16 x 16 tokens, a small T5; velocities, PixArt's betas
mini-flux       FluxPipeline: double- and single-stream blocks on 16 x 16 tokens, T5 and pooled CLIP; rectified flow
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from diffusers.models.attention_processor import AttnProcessor
from diffusion_feature.families.flux import pack, places, unpack
from mini_model import (
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
from scene_drawing import SIZE
from scenes_hard import words_of_scenes_hard
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

TEXT = 32  # text tokens of the kinds that know both worlds
HEADS, HEAD_WIDTH = 4, 48  # of the transformers
FAMILY_WORDS = tuple(dict.fromkeys([*WORDS, *words_of_scenes_hard()]))
LETTERS = [*map(chr, range(97, 123)), *map(chr, range(65, 91)), *"0123456789.-()'"]


@dataclass(frozen=True)
class Task:
    """One batch of what a denoiser learns: noised latents, their timesteps, what to predict, weights [B, 1, 1, 1]."""

    noised: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor | float = 1.0


def velocity(levels: Tensor, spread: tuple[float, float] | None = None, cap: float | None = None):
    """v = sqrt(a) e - sqrt(1 - a) x at timesteps of a schedule `levels` of cumulated alphas [T].

    spread  timesteps are logit-normal with this mean and deviation; None: uniform
    cap     the loss on x counts at most as at this signal-to-noise ratio (min-SNR's idea, on top of v's SNR + 1)
    """

    def task(clean: Tensor, generator: torch.Generator) -> Task:
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        if spread is None:
            t = torch.randint(0, len(levels), (len(clean),), generator=generator, device=clean.device)
        else:
            normal = torch.randn(len(clean), generator=generator, device=clean.device)
            t = (torch.sigmoid(spread[0] + spread[1] * normal) * len(levels)).long().clamp_max(len(levels) - 1)
        level = levels[t][:, None, None, None]
        signal, sigma = level.sqrt(), (1 - level).sqrt()
        weight = 1.0 if cap is None else ((cap + 1) * (1 - level)).clamp_max(1.0)  # SNR + 1 = 1 / (1 - a)
        return Task(signal * clean + sigma * noise, t, signal * noise - sigma * clean, weight)

    return task


def rectified_flow(clean: Tensor, generator: torch.Generator) -> Task:
    """x_s = (1 - s) x + s e, to be told e - x; s is logit-normal   (Esser et al., 2024)"""
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    s = torch.sigmoid(torch.randn(len(clean), generator=generator, device=clean.device))
    part = s[:, None, None, None]
    return Task((1 - part) * clean + part * noise, s, noise - clean)


@dataclass
class Networks:
    """What is trained together, by part of the pipeline, and how it is used.

    task      clean latents, generator -> Task
    predict   noised latents, timesteps, captions -> prediction
    pipeline  (vae) -> the diffusers pipeline of these parts, with the processors that diffusers gives them
    """

    modules: dict[str, nn.Module]
    task: Callable[[Tensor, torch.Generator], Task]
    predict: Callable[[Tensor, Tensor, list[str]], Tensor]
    pipeline: Callable[[AutoencoderKL], DiffusionPipeline]


# --- text ----------------------------------------------------------------------------------------------------------


def build_t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces: each word of both worlds is one, anything else is spelt in letters."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", ",", *("\u2581" + word for word in FAMILY_WORDS), *LETTERS]
    vocabulary = [(piece, -6.0 if len(piece) == 1 else 0.0) for piece in pieces]
    return T5Tokenizer(vocabulary, extra_ids=0, model_max_length=TEXT)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=WIDTH // 4, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        dropout_rate=0.0,
    ))  # fmt: skip


def t5_states(encoder: T5EncoderModel, tokenizer: T5Tokenizer, captions: list[str], masked: bool):
    """[B, TEXT, WIDTH] and the mask of real tokens [B, TEXT]; `masked`: real tokens do not see the padding."""
    tokens = tokenizer(captions, padding="max_length", max_length=TEXT, truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids.to(encoder.device), tokens.attention_mask.to(encoder.device)
    return encoder(ids, attention_mask=mask if masked else None)[0], mask


# --- the kinds -------------------------------------------------------------------------------------------------------


def stable_diffusion(channels: tuple[int, int], words: tuple[str, ...], context: int):
    def build(folder: Path, device: torch.device) -> Networks:
        tokenizer = build_tokenizer(folder / "tokenizer", words, context)
        text = build_text_encoder(tokenizer).to(device)
        unet = build_unet(channels).to(device, memory_format=torch.channels_last)
        unet.set_attn_processor(AttnProcessor())  # on a CPU the fused attention's backward in bfloat16 is slow
        scheduler = build_scheduler()

        def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
            noised = noised.contiguous(memory_format=torch.channels_last)
            return unet(noised, t, text_states(text, tokenizer, captions)).sample

        def pipeline(vae: AutoencoderKL) -> DiffusionPipeline:
            unet.set_default_attn_processor()
            return StableDiffusionPipeline(
                vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
                safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip

        task = velocity(scheduler.alphas_cumprod.to(device))
        return Networks({"text_encoder": text, "unet": unet}, task, predict, pipeline)

    return build


def pixart(folder: Path, device: torch.device) -> Networks:
    tokenizer = build_t5_tokenizer()
    text = build_t5(tokenizer).to(device)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_WIDTH, cross_attention_dim=HEADS * HEAD_WIDTH, num_layers=8,
        in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, caption_channels=WIDTH, sample_size=LATENT_SIDE,
        patch_size=1, norm_num_groups=8,
    )  # fmt: skip
    transformer.to(device).set_attn_processor(AttnProcessor())
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias) if module.bias is not None else None
    zero(transformer.proj_out, *(block.attn2.to_out[0] for block in transformer.transformer_blocks))
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear", beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"
    )
    size = {"resolution": None, "aspect_ratio": None}

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        states, mask = t5_states(text, tokenizer, captions, masked=True)
        return transformer(noised, states, t, added_cond_kwargs=size, encoder_attention_mask=mask).sample

    def pipeline(vae: AutoencoderKL) -> DiffusionPipeline:
        transformer.set_default_attn_processor()
        return PixArtSigmaPipeline(tokenizer, text, vae, transformer, scheduler)

    task = velocity(scheduler.alphas_cumprod.to(device), spread=(-0.5, 1.0), cap=5.0)
    return Networks({"text_encoder": text, "transformer": transformer}, task, predict, pipeline)


def flux(folder: Path, device: torch.device) -> Networks:
    tokenizer = build_tokenizer(folder / "tokenizer", FAMILY_WORDS, TEXT)
    tokenizer_2 = build_t5_tokenizer()
    clip, t5 = build_text_encoder(tokenizer).to(device), build_t5(tokenizer_2).to(device)
    transformer = FluxTransformer2DModel(
        in_channels=4 * FINE_CHANNELS, num_layers=2, num_single_layers=4, num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH, axes_dims_rope=(16, 16, 16), joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH, guidance_embeds=False,
    ).to(device)  # fmt: skip
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    zero(transformer.proj_out, transformer.norm_out.linear, *(block.norm.linear for block in single))
    zero(*(norm.linear for block in double for norm in (block.norm1, block.norm1_context)))
    side = SIZE // 4
    image_places, text_places = places(side, side).to(device), torch.zeros(TEXT, 3, device=device)

    def predict(noised: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        states, _ = t5_states(t5, tokenizer_2, captions, masked=False)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        told = transformer(
            pack(noised), encoder_hidden_states=states, pooled_projections=clip(ids).pooler_output, timestep=t,
            img_ids=image_places, txt_ids=text_places,
        )  # fmt: skip
        return unpack(told.sample, 2 * side, 2 * side)

    def pipeline(vae: AutoencoderKL) -> DiffusionPipeline:
        return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, clip, tokenizer, t5, tokenizer_2, transformer)

    modules = {"text_encoder": clip, "text_encoder_2": t5, "transformer": transformer}
    return Networks(modules, rectified_flow, predict, pipeline)


def zero(*layers: nn.Linear) -> None:
    """What a block adds is nothing at first."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


FINE_CHANNELS = 4


def build_fine_vae() -> AutoencoderKL:
    """Latents of half the side: Flux takes 2 x 2 of them as one token."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=FINE_CHANNELS, sample_size=SIZE, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32), layers_per_block=1, mid_block_add_attention=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """networks: (folder for tokenizers, device) -> Networks;  vae: how its VAE is built, or "goca:NAME" to borrow one

    denoiser  the trained part that the checkpoint and the loss curve are named after
    """

    networks: Callable[[Path, torch.device], Networks]
    vae: Callable[[], AutoencoderKL] | str
    denoiser: str
    worlds: dict[str, int]  # world -> training images


BOTH = {"scenes": 12_000, "scenes-hard": 28_000}
KINDS: dict[str, Kind] = {
    "mini-sd": Kind(stable_diffusion((96, 128), tuple(WORDS), CONTEXT), build_vae, "unet", {"scenes": 40_000}),
    "mini-sd-small": Kind(stable_diffusion((48, 64), FAMILY_WORDS, TEXT), "goca:mini-sd", "unet", BOTH),
    "mini-pixart": Kind(pixart, "goca:mini-sd", "transformer", BOTH),
    "mini-flux": Kind(flux, build_fine_vae, "transformer", BOTH),
}


def call_arguments(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Arguments with which a pipeline of the family is called, beside prompt, steps and guidance."""
    return {
        "StableDiffusionPipeline": {},
        "PixArtSigmaPipeline": {"use_resolution_binning": False, "clean_caption": False},
        "FluxPipeline": {"height": SIZE, "width": SIZE, "max_sequence_length": TEXT},
    }[type(pipe).__name__]


def guided(pipe: DiffusionPipeline, scale: float, batch: int) -> dict[str, Any]:
    """Arguments of a call with classifier-free guidance; Flux wants an empty negative prompt for each of the batch."""
    flux = type(pipe).__name__ == "FluxPipeline"
    own = {"true_cfg_scale": scale, "negative_prompt": [""] * batch} if flux else {"guidance_scale": scale}
    return own | call_arguments(pipe)
