"""A tiny random pipeline of Kolors: SDXL's UNet, and ChatGLM3 with its own tokenizer."""

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from sentencepiece import sentencepiece_model_pb2
from tiny import WORDS, XL, save_pipeline, unet, vae

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # kinds of sentencepiece's pieces


def save_chatglm_tokenizer(folder: Path) -> int:
    """A few words as one piece each, and letters; the size of its vocabulary."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 1
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", True
    pieces = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    pieces += [(piece, NORMAL) for piece in ("\u2581", ",", *("\u2581" + word for word in WORDS))]
    pieces += [(letter, NORMAL) for letter in map(chr, range(97, 123))]
    for piece, kind in pieces:
        model.pieces.add(piece=piece, score=-1.0 if len(piece) == 1 else 0.0, type=kind)
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    made = ChatGLMTokenizer(str(folder / "tokenizer.model"))
    made.save_pretrained(folder)
    return made.vocab_size


def save_kolors(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_chatglm_tokenizer(folder / "tokenizer")
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=words,
        hidden_size=16,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    denoiser = unet(
        cross_attention_dim=16,
        **XL,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
    )
    encoder = ChatGLMModel(config).eval()
    for name, weight in encoder.named_parameters():  # some are not initialised
        torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.normal_(weight, std=0.3)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.014, num_train_timesteps=1100, steps_offset=1
    )
    parts = {"unet": denoiser, "vae": vae(), "text_encoder": encoder, "scheduler": scheduler}
    tokenizers = {"tokenizer": "ChatGLMTokenizer"}
    return save_pipeline(folder, "KolorsPipeline", tokenizers, library="kolors", **parts)
