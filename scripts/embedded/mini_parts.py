"""Fresh parts of the small models: tokenizers, text encoders, denoisers and schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from embedded.mini_model import (
    LATENT_CHANNELS,
    LATENT_SIDE,
    WIDTH,
    WORDS,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from embedded.scenes_hard import words_of_scenes_hard

TEXT = 32  # text tokens of the kinds that know both worlds
HEADS, HEAD_WIDTH = 4, 48  # of the transformers
FAMILY_WORDS = tuple(dict.fromkeys([*WORDS, *words_of_scenes_hard()]))
LETTERS = [*map(chr, range(97, 123)), *map(chr, range(65, 91)), *"0123456789.-()'"]


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
