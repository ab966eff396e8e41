"""Prompts to token ids and hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_feature.devices import device_of


def padded_tokens(tokenizer: Any, encoder: Any, prompts: list[str], length: int) -> tuple[dict[str, Tensor], list[str]]:
    """Padded token ids and masks [B, N] on the encoder's device, and the truncated text of each prompt."""
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    cut = [""] * len(prompts)
    if (tokens["attention_mask"][:, -1] == 1).any():  # full to the last place: only then can something have been cut
        whole = tokenizer(prompts, truncation=False, verbose=False)["input_ids"]
        rest = [tokenizer.decode(ids[length - 1 : -1]) for ids in whole]  # the end token is kept
        cut = [text.replace(" ,", ",").strip(" ,") for text in rest]
    device = device_of(encoder)
    return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}, cut


def written_out(tokenizer: Any, prompts: list[str]) -> list[str]:
    """The prompts as diffusers' pipelines hand them to CLIP, and Flux's to T5: a learnt token (textual inversion) of
    several vectors becomes several tokens."""
    known = getattr(tokenizer, "added_tokens_encoder", {})
    if not any(f"{name}_1" in known for name in known):
        return prompts
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)


def clip_tokens(tokenizer: Any, encoder: Any, prompts: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """`padded_tokens` at CLIP's own length, learnt tokens written out."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return padded_tokens(tokenizer, encoder, written_out(tokenizer, prompts), length)


def clip_penultimate(tokenizer: Any, encoder: Any, prompts: list[str]) -> tuple[Tensor, Tensor, list[str]]:
    """CLIP's hidden states before its last layer [B, N, c], its first output (a projected text: [B, p]), text cut."""
    tokens, cut = clip_tokens(tokenizer, encoder, prompts)
    output = encoder(tokens["input_ids"], output_hidden_states=True)
    return output.hidden_states[-2], output[0], cut


def encoder_states(
    tokenizer: Any, encoder: Any, prompts: list[str], length: int, masked: bool
) -> tuple[Tensor, Tensor, list[str]]:
    """T5's or BERT's last hidden states [B, N, c], the mask of real tokens [B, N], text cut.

    masked   real tokens do not see the padding
    """
    tokens, cut = padded_tokens(tokenizer, encoder, prompts, length)
    mask = tokens["attention_mask"]
    return encoder(tokens["input_ids"], attention_mask=mask if masked else None)[0], mask, cut


def longest(*cuts: list[str]) -> list[str]:
    """Per prompt, the longest text that one of several encoders truncated."""
    return [max(texts, key=len) for texts in zip(*cuts)]
