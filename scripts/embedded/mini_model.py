"""The parts of mini-sd: a tokenizer whose every scene word is one token, and the networks at their size.

The folder that comes of them is an ordinary StableDiffusionPipeline: AutoencoderKL, CLIPTextModel + CLIPTokenizer,
UNet2DConditionModel of SD1.5's block types, PNDMScheduler with SD1.5's betas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from embedded.backgrounds import LOWER, UPPER
from embedded.pen import SIZE
from embedded.scene_drawing import OBJECTS, PARTS

CONTEXT = 16  # text tokens, with start, end and padding
WIDTH = 96  # of the text states
LATENT_CHANNELS = 8
LATENT_SIDE = SIZE // 4

WORDS = [*OBJECTS, *UPPER, *LOWER, *(part for parts in PARTS.values() for part in parts)]


def bytes_to_letters() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in the order of CLIP's vocabulary (printable bytes first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def build_tokenizer(folder: Path, words: Sequence[str] = WORDS, context: int = CONTEXT) -> CLIPTokenizer:
    """A CLIP tokenizer, saved to `folder`: bytes, merges that build each of the words into one token, start, end."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # follow the merges there are, then add one
            known = [i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) in merges]
            i = min(known, key=lambda i: merges.index((pieces[i], pieces[i + 1])), default=0)
            pair = (pieces[i], pieces[i + 1])
            if pair not in merges:
                merges.append(pair)
            pieces[i : i + 2] = ["".join(pair)]
    letters = bytes_to_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {entry: i for i, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # one of other words would be read in place of what follows
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer.from_pretrained(folder, pad_token="<|endoftext|>", model_max_length=context)
    tokenizer.save_pretrained(folder)
    for word in words:
        if len(ids := tokenizer(word).input_ids) != 3:
            raise AssertionError(f"{word!r} should be one token between start and end; it became {ids}")
    return tokenizer


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIZE,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = WIDTH) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(channels: tuple[int, ...] = (96, 128)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        attention_head_dim=4,  # the number of heads, as in SD1.5's configuration
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


def build_scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def text_states(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[B, N, C]; captions are padded or cut to the tokenizer's context N."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return encoder(ids.to(encoder.device)).last_hidden_state
