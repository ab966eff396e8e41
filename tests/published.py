"""Folders as they were published: true index files and configuration keys (published.json), tiny random weights.

Old class names, old keys, missing parts, 16-bit variants beside the plain files, weights in several files, pickles,
and tokenizers without a tokenizer.json. "small" holds the numbers that are made small; all others are the published
ones, so that every layer id is there.
"""

import json
import shutil
from pathlib import Path

import diffusers
import tiny
import torch
import transformers
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

LAYOUTS = json.loads((Path(__file__).parent / "published.json").read_text())
ADDED = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "__type": "AddedToken"}
TYPES = {
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "non_ema": torch.float32,
    "bin": torch.float32,
}
NOW = {"ada_norm_single": "PixArtTransformer2DModel", "ada_norm_zero": "DiTTransformer2DModel"}  # a Transformer2DModel
MARKED = ("fp16", "non_ema")  # kinds of files that have their kind in their name
NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # kinds of sentencepiece's pieces


def save(name: str, folder: Path, kinds: tuple[str, ...] | None = None) -> Path:
    """A published repository in a folder. kinds: the files of weights that are written; None: those it has."""
    layout = LAYOUTS[name]
    folder.mkdir(parents=True)
    if "index" in layout:
        (folder / "model_index.json").write_text(json.dumps(layout["index"], indent=2))
    words = {
        part: tokenizer(kind, folder / part, layout.get("pad", "<|endoftext|>"))
        for part, (_, kind) in listed(layout)
        if part.startswith("tokenizer")
    }
    torch.manual_seed(0)
    for part, entry in layout["parts"].items():
        where = folder / part
        where.mkdir()
        vocabulary = words.get(part.replace("text_encoder", "tokenizer"))
        small = entry.get("small", {}) | ({"vocab_size": vocabulary} if vocabulary else {})
        config = entry["config"] | small
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (where / file).write_text(json.dumps(config, indent=2))
        if "weights" in entry:
            weigh(made(part, config), where, kinds or entry["weights"], entry.get("shards", 1))
    return folder


def listed(layout: dict) -> list:
    return [(part, entry) for part, entry in layout.get("index", {}).items() if isinstance(entry, list) and entry[0]]


def made(part: str, config: dict) -> torch.nn.Module:
    """A model of that configuration, as the library of today reads it."""
    if part.startswith("text"):
        kind = getattr(transformers, config["architectures"][0])
        return kind(kind.config_class(**config))
    kind = getattr(diffusers, NOW.get(config.get("norm_type"), config["_class_name"]))
    model = kind.from_config(config)
    for own in model.parameters(recurse=False):  # HunyuanDiT leaves some of its own undrawn
        torch.nn.init.normal_(own, std=0.02)
    return model


def weigh(model: torch.nn.Module, where: Path, kinds: tuple[str, ...], shards: int) -> None:
    """Its weights in files of every kind, cut into as many as were published."""
    stem = "model" if where.name.startswith("text") else "diffusion_pytorch_model"
    tied = getattr(model, "_tied_weights_keys", None) or ()
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tied}
    for kind in kinds:
        own = {
            name: weight.to(TYPES[kind] if weight.is_floating_point() else weight.dtype).clone().contiguous()
            for name, weight in weights.items()
        }
        mark = f".{kind}" if kind in MARKED else ""
        if kind == "bin":
            torch.save(own, where / f"{stem.replace('model', 'pytorch_model') if stem == 'model' else stem}.bin")
        elif shards == 1:
            save_file(own, where / f"{stem}{mark}.safetensors", {"format": "pt"})
        else:
            cut(own, where, f"{stem}{mark}", f"{stem}.safetensors.index{mark}.json", shards)


def cut(weights: dict, where: Path, stem: str, index: str, shards: int) -> None:
    names = [f"{stem}-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    parts = [{name: weights[name] for name in list(weights)[number::shards]} for number in range(shards)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, where / name, {"format": "pt"})
    total = sum(weight.nbytes for weight in weights.values())
    places = {weight: name for name, part in zip(names, parts, strict=True) for weight in part}
    (where / index).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))


# ---- tokenizers as they were written before tokenizer.json


def tokenizer(kind: str, folder: Path, pad: str) -> int:
    """Returns the size of its vocabulary."""
    if kind.startswith("CLIP"):
        return clip_tokenizer(folder, pad)
    return bert_tokenizer(folder) if kind.startswith("Bert") else t5_tokenizer(folder)


def clip_tokenizer(folder: Path, pad: str) -> int:
    scratch = folder.with_name(f"{folder.name}-made")
    size = tiny.save_tokenizer(scratch)
    folder.mkdir()
    vocabulary = json.loads((scratch / "tokenizer.json").read_text())["model"]["vocab"]
    if pad not in vocabulary:
        vocabulary[pad] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = json.loads((scratch / "tokenizer.json").read_text())["model"]["merges"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    shutil.rmtree(scratch)
    start, end = ({**ADDED, "content": f"<|{name}oftext|>"} for name in ("start", "end"))
    (folder / "special_tokens_map.json").write_text(
        json.dumps(
            {
                name: {key: value for key, value in each.items() if key != "__type"}
                for name, each in (("bos_token", start), ("eos_token", end), ("unk_token", end))
            }
            | {"pad_token": pad}
        )
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_prefix_space": False,
                "bos_token": start,
                "do_lower_case": True,
                "eos_token": end,
                "errors": "replace",
                "model_max_length": 77,
                "name_or_path": "openai/clip-vit-large-patch14",
                "pad_token": pad,
                "special_tokens_map_file": "./special_tokens_map.json",
                "tokenizer_class": "CLIPTokenizer",
                "unk_token": end,
            }
        )
    )
    return max(size, len(vocabulary))


def t5_tokenizer(folder: Path) -> int:
    """Sentencepiece's own file, as T5's slow tokenizer reads it; the last tokens are T5's hundred extra ones."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_id, model.trainer_spec.bos_id = 1, 2, -1
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", True
    for piece, kind in (("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece in ("\u2581", ",", *("\u2581" + word for word in tiny.WORDS), *map(chr, range(97, 123))):
        model.pieces.add(piece=piece, score=0.0 if len(piece) > 1 else -5.0, type=NORMAL)
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    extra = [f"<extra_id_{number}>" for number in range(100)]
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": extra}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            special
            | {
                "extra_ids": 100,
                "model_max_length": 512,
                "name_or_path": "google/t5-v1_1-xxl",
                "sp_model_kwargs": {},
                "special_tokens_map_file": None,
                "tokenizer_class": "T5Tokenizer",
            }
        )
    )
    return len(model.pieces) + 100


def bert_tokenizer(folder: Path) -> int:
    letters = [*map(chr, range(97, 123)), ","]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.WORDS, *letters, *("##" + each for each in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "mask", "pad", "sep", "unk")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            special
            | {
                "clean_up_tokenization_spaces": True,
                "do_basic_tokenize": True,
                "do_lower_case": True,
                "model_max_length": 77,
                "never_split": None,
                "strip_accents": None,
                "tokenize_chinese_chars": True,
                "tokenizer_class": "BertTokenizer",
            }
        )
    )
    return len(pieces)
