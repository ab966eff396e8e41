"""`Attention`: queries, keys, values and result of one attention call, and the maps computed from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_feature.backbone import AttentionLayer
from diffusion_feature.errors import ExtractorError

CHUNK_BYTES = {"cpu": 8 << 20}  # memory of a chunk's probabilities; small enough for a CPU's caches
LARGE_CHUNK = 64 << 20  # on other devices: few, large kernels
SHORT_ROW = 32  # keys
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Attention:
    """One call of scaled dot-product attention, with its image and text tokens.

    query, key, value    [B, H, S, d]  [B, H, K, d]  [B, H, K, d]
    mask                 None, or broadcastable to [B, H, S, K]: added to the logits, or bool (False: masked)
    scale                scale of the logits; None: 1/sqrt d
    result               concat_h A_h V_h, before the output projection   [B, H, S, d]; None once compacted
    grid                 image tokens as rows and columns (h, w)
    halves               whether queries and keys are 16-bit numbers stored in float32 (see `widened`)
    image_queries        which queries are image tokens
    image_keys, text_keys    which keys are image or text tokens; None if there are none
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
    halves: bool = False

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    def rows(self, selection: Tensor | None = None) -> Attention:
        """Restrict to the image queries, or to the selected ones among them (indices [n])."""
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
        """Drop values and result, which no later map needs."""
        return dataclasses.replace(self, value=None, result=None)

    def probabilities(self, queries: slice = slice(None), heads: slice = slice(None)) -> Tensor:
        """softmax(scale * q k^T + mask) over all keys, for some queries and heads, in float32   [B, h, s, K]

        Logits are computed in float32, since in bfloat16 a logit of 10 has an error of 0.03.
        """
        query, key = self.query[:, heads, queries], self.key[:, heads]
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.halves:
            logits = exact_products(query, key, scale)
        elif key.shape[-2] < SHORT_ROW:
            logits = (key.float() @ (query.float() * scale).mT).mT  # the layout that `softmax_` needs
        else:
            logits = (query.float() * scale) @ key.float().mT
        if self.mask is not None:
            mask = self.mask[..., queries, :] if self.mask.shape[-2] > 1 else self.mask
            mask = mask[:, heads] if mask.ndim == 4 and mask.shape[1] > 1 else mask
            logits = logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
        return softmax_(logits)

    @property
    def chunk(self) -> tuple[int, int]:
        """(queries, heads) per chunk within the byte limit: all queries, then more heads."""
        batch, heads, queries, _ = self.query.shape
        rows = max(1, CHUNK_BYTES.get(self.query.device.type, LARGE_CHUNK) // (4 * batch * self.key.shape[-2]))
        return min(queries, rows), min(heads, max(1, rows // queries))

    def chunks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Slices of queries, each with its slices of heads."""
        step, group = self.chunk
        heads = [slice(first, first + group) for first in range(0, self.heads, group)]
        for start in range(0, self.query.shape[2], step):
            yield slice(start, min(start + step, self.query.shape[2])), heads

    @property
    def widens(self) -> bool:
        """Whether 16-bit queries and keys are converted to float32 once for all chunks.

        On a CPU each chunk is converted separately, which needs less memory.
        """
        return self.query.device.type != "cpu" and self.query.dtype in HALVES

    def widened(self) -> Attention:
        if not self.widens:
            return self
        return dataclasses.replace(self, query=self.query.float(), key=self.key.float(), halves=True)

    def head_sums(self, wanted: Sequence[HeadSum]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield for each chunk of queries the wanted sums [B, s, k], all from one softmax."""
        wide = self.widened()
        for queries, groups in self.chunks():
            sums: list[Tensor] = []
            for heads in groups:
                probabilities = wide.probabilities(queries, heads)
                parts = [each.of(probabilities, queries, heads) for each in wanted]
                sums = [total.add_(part) for total, part in zip(sums, parts)] or parts
                del probabilities, parts
            yield queries, sums

    def working_bytes(self, copies: int = 0) -> int:
        """Peak memory of `head_sums`: probabilities of one chunk, weighted and unweighted, their sums over heads, and
        `copies` copies of these sums that the caller makes."""
        step, group = self.chunk
        widened = 4 * (self.query.numel() + self.key.numel()) if self.widens else 0
        return widened + 4 * len(self.query) * step * self.key.shape[-2] * (2 * group + 2 + copies)

    def head_mean(self, selection: Tensor | None = None) -> Tensor:
        """Mean over heads of the self map, of all image queries or the selected ones   [B, n, S]"""
        assert self.image_keys is not None
        total = HeadSum(self.image_keys)
        return whole([part.div_(self.heads) for _, (part,) in self.rows(selection).head_sums([total])])

    def map(self, layout: str) -> Tensor:
        """All heads' "self" or "cross" map   [B, H, S, S or N]"""
        rows, keys = self.rows(), self.image_keys if layout == "self" else self.text_keys
        if keys is None:
            raise ExtractorError(f"{self.layer.block} has no {layout} map: it is a {self.layer.layout} attention")
        maps = rows.query.new_empty(*rows.query.shape[:3], keys.stop - keys.start, dtype=torch.float32)
        for queries, groups in rows.chunks():
            for heads in groups:
                maps[:, heads, queries] = rows.probabilities(queries, heads)[..., keys]
        return maps


@dataclass(frozen=True)
class HeadSum:
    """sum_h w_h(s) A_h(s, k) over some keys, accumulated chunk by chunk.

    weights   [B, H, S or 1]; None: 1 each
    """

    keys: slice
    weights: Tensor | None = None

    def of(self, probabilities: Tensor, queries: slice, heads: slice) -> Tensor:
        """The partial sum over a chunk's heads   [B, h, s, K] -> [B, s, k]"""
        part = probabilities[..., self.keys]
        if self.weights is not None:
            w = self.weights[:, heads, queries] if self.weights.shape[2] > 1 else self.weights[:, heads]
            part = part * w[..., None]
        return part.sum(1) if part.shape[1] > 1 else part[:, 0]


def exact_products(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """scale * q k^T of 16-bit numbers in float32 tensors, with TF32: products of such numbers are exact and sums are in
    float32, and it is several times faster."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        return (query @ key.mT).mul_(scale)
    finally:
        setting.fp32_precision = before


def softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last axis [..., s, K], in place. Rows shorter than SHORT_ROW are transposed first, since a CPU
    vectorises over queries about 15 times faster."""
    if logits.shape[-1] >= SHORT_ROW:
        return torch.softmax(logits, -1, out=logits)
    return logits.transpose(-1, -2).contiguous().softmax(-2).transpose(-1, -2)


def whole(chunks: list[Tensor]) -> Tensor:
    """Concatenate chunks of queries [B, n_i, ...]."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def grid_of(tokens: int, latents: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a number of image tokens: the latents' (h, w), halved (rounding up) until they match."""
    h, w = latents
    while h * w > tokens and h * w > 1:
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != tokens:
        raise ExtractorError(
            f"{tokens} image tokens do not fit latents of {latents[0]} x {latents[1]}, however often halved"
        )
    return h, w


def self_layout(image: int, keys: int, own: int = 0) -> dict[str, Any]:
    return {"image_queries": slice(0, image), "image_keys": slice(0, keys), "text_keys": None}


def cross_layout(image: int, keys: int, own: int = 0) -> dict[str, Any]:
    return {"image_queries": slice(0, image), "image_keys": None, "text_keys": slice(0, keys)}


def text_first_layout(image: int, keys: int, own: int = 0) -> dict[str, Any]:
    text = keys - image
    return {"image_queries": slice(text, keys), "image_keys": slice(text, keys), "text_keys": slice(own, text)}


def image_first_layout(image: int, keys: int, own: int = 0) -> dict[str, Any]:
    return {"image_queries": slice(0, image), "image_keys": slice(0, image), "text_keys": slice(image + own, keys)}


# layout -> which queries and keys are image or text tokens, from the numbers of image tokens, of keys, and of the
# model's own tokens before the text
LAYOUTS = {
    "self": self_layout,
    "cross": cross_layout,
    "text-first": text_first_layout,
    "image-first": image_first_layout,
}
