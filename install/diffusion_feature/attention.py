"""One attention as it passes: queries, keys, values and result, and the maps that can be made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer
from diffusion_feature.errors import ExtractorError

CHUNK_BYTES = 64 << 20  # what the probabilities of one chunk of queries may take
SHORT_ROW = 32  # keys


@dataclass(frozen=True)
class Attention:
    """One call of scaled dot-product attention, its image tokens and its text tokens.

    query, key, value    [B, H, S, d]  [B, H, K, d]  [B, H, K, d]
    mask                 None, or what broadcasts to [B, H, S, K]: added to the logits, or bool (False: not seen)
    scale                of the logits; None: 1/sqrt d
    result               concat_h A_h V_h, before the output projection   [B, H, S, d]; None once compacted
    grid                 image tokens as rows and columns (h, w)
    image_queries        which queries are image tokens
    image_keys, text_keys    which keys are image or text tokens; None where there are none
    """

    layer: AttentionLayer
    query: Tensor
    key: Tensor
    value: Tensor | None
    mask: Tensor | None
    scale: float | None
    result: Tensor | None
    grid: tuple[int, int]
    image_queries: slice
    image_keys: slice | None
    text_keys: slice | None

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    def rows(self, selection: Tensor | None = None) -> Attention:
        """Image queries only, and of these only the selected ones (indices [n])."""
        image = self.image_queries
        query, mask, result = self.query[:, :, image], self.mask, self.result
        if selection is not None:
            query = query[:, :, selection]
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., image, :] if selection is None else mask[..., image, :][..., selection, :]
        if result is not None:
            result = result[:, :, image] if selection is None else result[:, :, image][:, :, selection]
        return dataclasses.replace(self, query=query, mask=mask, result=result, image_queries=slice(None))

    def compact(self) -> Attention:
        """Without values and result: what later maps need, and no more."""
        return dataclasses.replace(self, value=None, result=None)

    def probabilities(self, chunk: slice = slice(None)) -> Tensor:
        """softmax(scale * q k^T + mask) over all keys for a chunk of the queries, in float32   [B, H, s, K]"""
        query = self.query[:, :, chunk]
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = ((query * scale) @ self.key.transpose(-1, -2)).float()
        if self.mask is not None:
            mask = self.mask[..., chunk, :] if self.mask.shape[-2] > 1 else self.mask
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        return softmax(logits)

    def chunks(self) -> Iterator[slice]:
        """The queries in slices whose probabilities stay within CHUNK_BYTES."""
        batch, heads, queries, _ = self.query.shape
        step = max(1, CHUNK_BYTES // (4 * batch * heads * self.key.shape[-2]))
        for start in range(0, queries, step):
            yield slice(start, min(start + step, queries))

    @property
    def working_bytes(self) -> int:
        """What making maps takes at once: logits and probabilities of one chunk, and their mean over heads."""
        batch, heads, queries, _ = self.query.shape
        keys = self.key.shape[-2]
        chunk = max(4 * batch * heads * keys, min(CHUNK_BYTES, 4 * batch * heads * queries * keys))
        return 2 * chunk + 4 * batch * queries * keys

    def head_mean(self, selection: Tensor | None = None) -> Tensor:
        """Mean over heads of the self map, of all image queries or the selected ones   [B, n, S]"""
        rows = self.rows(selection)
        keys = self.image_keys
        return whole([rows.probabilities(chunk).mean(1)[..., keys] for chunk in rows.chunks()])

    def map(self, layout: str) -> Tensor:
        """All heads' "self" or "cross" map   [B, H, S, S or N]"""
        rows, keys = self.rows(), self.image_keys if layout == "self" else self.text_keys
        if keys is None:
            raise ExtractorError(f"{self.layer.block} has no {layout} map: it is a {self.layer.layout} attention")
        return torch.cat([rows.probabilities(chunk)[..., keys] for chunk in rows.chunks()], dim=2)


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis [..., s, K]; short rows are turned: a CPU then runs along the queries, 15 times as fast."""
    if logits.shape[-1] >= SHORT_ROW:
        return logits.softmax(-1)
    return logits.transpose(-1, -2).contiguous().softmax(-2).transpose(-1, -2)


def whole(chunks: list[Tensor]) -> Tensor:
    """Chunks of queries [B, n_i, ...] put together."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def grid_of(tokens: int, latents: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of that many image tokens: the latents' (h, w), halved (rounding up) until they fit."""
    h, w = latents
    while h * w > tokens and h * w > 1:
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != tokens:
        raise ExtractorError(f"{tokens} image tokens are no halving of latents of {latents[0]} x {latents[1]}")
    return h, w


def self_layout(image: int, keys: int) -> dict[str, Any]:
    return {"image_queries": slice(None), "image_keys": slice(None), "text_keys": None}


def cross_layout(image: int, keys: int) -> dict[str, Any]:
    return {"image_queries": slice(None), "image_keys": None, "text_keys": slice(None)}


def text_first_layout(image: int, keys: int) -> dict[str, Any]:
    text = keys - image
    return {"image_queries": slice(text, keys), "image_keys": slice(text, keys), "text_keys": slice(0, text)}


def image_first_layout(image: int, keys: int) -> dict[str, Any]:
    return {"image_queries": slice(0, image), "image_keys": slice(0, image), "text_keys": slice(image, keys)}


# layout -> which queries and keys are image or text tokens, from their numbers
LAYOUTS = {
    "self": self_layout,
    "cross": cross_layout,
    "text-first": text_first_layout,
    "image-first": image_first_layout,
}
