"""Tokenizers of CLIP's, T5's and BERT's kind that know a few words."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, T5Tokenizer

WORDS = ("cat", "dog", "grass", "wall", "sky")
TEXT = 12  # text tokens


LETTERS = [*map(chr, range(97, 123)), *"0123456789,.-()"]


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS, letters: Sequence[str] = LETTERS) -> int:
    """A CLIP tokenizer that knows a few words and spells the rest; returns the size of its vocabulary."""
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in words:
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


def save_t5_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", ",", *("\u2581" + word for word in words), *map(chr, range(97, 123))]
    vocabulary = [(piece, 0.0 if len(piece) != 1 else -5.0) for piece in pieces]
    T5Tokenizer(vocabulary, extra_ids=0, model_max_length=TEXT).save_pretrained(folder)
    return len(vocabulary)


def save_bert_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    letters = [*map(chr, range(97, 123)), ","]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizer(vocabulary, model_max_length=77).save_pretrained(folder)
    return len(vocabulary)


def tokenizers(folder: Path, words: Sequence[str]) -> dict:
    """ "clip", "t5" and "bert": tokenizers that know these words; CLIP's and BERT's spell the others."""
    every_byte = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    save_tokenizer(folder / "clip", words, every_byte)
    save_t5_tokenizer(folder / "t5", words)
    save_bert_tokenizer(folder / "bert", words)
    lengths = {"clip": 77, "t5": 300, "bert": 77}
    return {name: AutoTokenizer.from_pretrained(folder / name, model_max_length=n) for name, n in lengths.items()}
