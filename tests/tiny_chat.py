"""Tiny random pipelines whose text encoder is a language model, and the tokenizers that go with them."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from diffusers import (
    CogView4Transformer2DModel,
    Kandinsky5Transformer3DModel,
    LongCatImageTransformer2DModel,
    Lumina2Transformer2DModel,
    OvisImageTransformer2DModel,
)
from tiny import WORDS, clip, flow, save_pipeline, save_tokenizer, vae
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ROLES = ("<|im_start|>", "<|im_end|>")
PAD, UNKNOWN = "<|endoftext|>", "<unk>"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{{ message['content'][0]['text'] }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def save_language_tokenizer(folder: Path, words: Sequence[str] = WORDS, left: bool = False, start: str = "") -> int:
    """Byte-level pieces, and a few words as one piece, with a blank before them or without; the vocabulary's size.

    left   it pads on the left;  start   a token that it puts before every text
    """
    vocabulary, merges = [*BYTES], []
    for word in (*words, *("\u0120" + word for word in words)):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.append(word[:end])
    vocabulary = list(dict.fromkeys(vocabulary))
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(numbers, list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, UNKNOWN, *ROLES)])
    if start:
        number = tokenizer.token_to_id(start)
        tokenizer.post_processor = processors.TemplateProcessing(f"{start} $A", None, [(start, number)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=ROLES[1],
        padding_side="left" if left else "right",
        chat_template=CHAT,
    )
    fast.save_pretrained(folder)
    return len(fast)


LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}


def language_model(kind: str, words: int, **more):
    """A tiny one of transformers' language models, by its class."""
    found = getattr(transformers, kind)
    own = {"vocab_size": words, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return found(found.config_class(**LANGUAGE | own | more)).eval()


def qwen_vl(words: int):
    """Qwen2.5-VL, of whose eyes nothing is used."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = LANGUAGE | {"vocab_size": words, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    text.pop("head_dim")
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    ids = {"image_token_id": 0, "video_token_id": 1, "vision_start_token_id": 2, "vision_end_token_id": 3}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).eval()


FAST = "PreTrainedTokenizerFast"


def save_cogview4(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer", left=True, start=ROLES[0])
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    parts = {"transformer": transformer, "vae": vae(), "text_encoder": language_model("GlmModel", words)}
    parts["scheduler"] = flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75)
    return save_pipeline(folder, "CogView4Pipeline", {"tokenizer": FAST}, **parts)


def save_ovis(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1)}
    parts |= {"text_encoder": language_model("Qwen3Model", words), "scheduler": flow(use_dynamic_shifting=True)}
    return save_pipeline(folder, "OvisImagePipeline", {"tokenizer": FAST}, **parts)


def save_longcat(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[2, 2, 4],
    )
    parts = {"transformer": transformer, "vae": vae(16, shift_factor=0.1)}
    parts |= {"text_encoder": qwen_vl(words), "scheduler": flow(use_dynamic_shifting=True)}
    return save_pipeline(folder, "LongCatImagePipeline", {"tokenizer": FAST}, **parts)


def save_kandinsky5(folder: Path) -> Path:
    """Three visual blocks, and one of the text's own."""
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    pieces = save_tokenizer(folder / "tokenizer_2")
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(2, 2, 4),
    )
    for module in transformer.modules():
        if type(module).__name__ == "Kandinsky5Modulation":  # they begin at zero, which would hide everything
            torch.nn.init.normal_(module.out_layer.weight, std=0.2)
    parts = {"transformer": transformer, "vae": vae(levels=4), "text_encoder": qwen_vl(words)}
    parts["text_encoder_2"] = clip(pieces, positions=77)
    parts["scheduler"] = flow(shift=3.0)
    tokenizers = {"tokenizer": FAST, "tokenizer_2": "CLIPTokenizer"}
    return save_pipeline(folder, "Kandinsky5T2IPipeline", tokenizers, **parts)


def save_lumina2(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_language_tokenizer(folder / "tokenizer")
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=16,
    )
    parts = {"transformer": transformer, "vae": vae(levels=4, shift_factor=0.1)}
    parts["text_encoder"] = language_model("Gemma2Model", words)
    parts["scheduler"] = flow(shift=6.0)
    return save_pipeline(folder, "Lumina2Pipeline", {"tokenizer": FAST}, **parts)
