"""Prompts to token ids."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def clip_tokens(tokenizer: Any, encoder: Any, prompts: list[str]) -> tuple[dict[str, Tensor], list[int]]:
    """Padded token ids and masks on the encoder's device   [B, N], and how many tokens of each prompt were cut."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    cut = [0] * len(prompts)
    if (tokens["attention_mask"][:, -1] == 1).any():  # full to the last place: only then can something have been cut
        whole = tokenizer(prompts, truncation=False, verbose=False)["input_ids"]
        cut = [max(len(ids) - length, 0) for ids in whole]
    device = next(encoder.parameters()).device
    return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}, cut
