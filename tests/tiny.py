"""Tiny random pipelines, made in a second: what the extractor and the method are tried on."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("cat", "dog", "grass", "wall", "sky")
TEXT = 12  # text tokens


def save_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer that knows a few words and spells the rest; returns the size of its vocabulary."""
    letters = [chr(code) for code in range(97, 123)] + [*"0123456789,.-()"]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            tail = "</w>" if end == len(word) else ""
            merges.append(f"{word[: end - 1]} {word[end - 1]}{tail}")
            vocabulary.append(word[:end] + tail)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)))
    CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT).save_pretrained(folder)
    return len(vocabulary)


def save_sd(folder: Path) -> Path:
    """A pipeline folder of Stable Diffusion's kind: two levels, 11 cross-attentions, latents of a quarter."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 24), cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, sample_size=32, mid_block_add_attention=False,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TEXT, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}
    index = {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers" if name == "text_encoder" else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


SD_CONFIG = {
    "version": "mini",
    "img_size": 32,
    "feat_size": 8,
    "t": 100,
    "ref_layer": "up-level1-repeat1-vit-block0-cross-q",
    "cross_layers": "all",
    "self_layers": ["up-level1-repeat{0,1}-vit-block0-self-map"],
}
