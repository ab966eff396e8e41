"""Head-wise aggregation: how much each head of a cross-attention says at each pixel.

Head h writes o_h = A_h V_h W_h into the layer's output O = sum_h o_h (no bias). What follows needs no [S, D] tensor
per head: <o_h, O> comes from (P W) W^T, and |o_h| from the small Gram matrices W_h W_h^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class HeadOutputs:
    """What the heads of one layer write.

    values      A_h V_h                                       [B, H, S, d]
    out_proj    the output projection's weight, without bias  [D, H*d]
    token_values V_h                                          [B, H, N, d]
    """

    values: Tensor
    out_proj: Tensor
    token_values: Tensor

    @cached_property
    def W(self) -> Tensor:
        """The projection's rows by head, from the right: o_h = values_h @ W_h   [H, d, D]"""
        return self.out_proj.T.unflatten(0, (self.values.shape[1], -1))

    @cached_property
    def dot(self) -> Tensor:
        """<o_h, O>   [B, H, S]"""
        P = self.values.transpose(1, 2).flatten(2).float()  # [B, S, C]
        out_proj = self.out_proj.float()
        Q = torch.linalg.multi_dot([P.flatten(0, 1), out_proj.T, out_proj]).view_as(P)  # W W^T first where S is large
        return Q.mul_(P).unflatten(2, (self.values.shape[1], -1)).sum(-1).transpose(1, 2)

    @cached_property
    def norm(self) -> Tensor:
        """|o_h|   [B, H, S]"""
        W, values = self.W.float(), self.values.float()
        gram = W @ W.transpose(1, 2)  # [H, d, d]
        return (values @ gram).mul_(values).sum(-1).clamp(min=0).sqrt()

    @cached_property
    def total(self) -> Tensor:
        """|O|, from |O|^2 = sum_h <o_h, O>   [B, 1, S]"""
        return self.dot.sum(1, keepdim=True).clamp(min=0).sqrt()

    @cached_property
    def reach(self) -> Tensor:
        """Spectral norm of V_h W_h   [B, H, 1]"""
        triangle = torch.linalg.qr(self.W.transpose(1, 2).float(), mode="r").R  # W_h^T = Q R, so |V W| = |V R^T|
        return torch.linalg.matrix_norm(self.token_values.float() @ triangle.transpose(1, 2), ord=2)[..., None]


def average(heads: HeadOutputs) -> Tensor:
    return torch.ones_like(heads.values[:, :, :1, 0], dtype=torch.float32)  # [B, H, 1]


def l2_norm(heads: HeadOutputs) -> Tensor:
    return heads.norm


def cosine(heads: HeadOutputs) -> Tensor:
    return heads.dot / (heads.norm * heads.total)


def clamped_dot(heads: HeadOutputs) -> Tensor:
    return heads.dot.clamp(min=0)


def dot(heads: HeadOutputs) -> Tensor:
    return heads.dot


def cosine_reach(heads: HeadOutputs) -> Tensor:
    return cosine(heads) * heads.reach


def clamped_dot_reach(heads: HeadOutputs) -> Tensor:
    return clamped_dot(heads) * heads.reach


HEAD_RULES: dict[str, Callable[[HeadOutputs], Tensor]] = {
    "average": average,
    "l2-norm": l2_norm,
    "cosine": cosine,
    "dot-product": clamped_dot,
    "dot-product w/o clamp": dot,
    "cosine + VW": cosine_reach,
    "dot-product + VW": clamped_dot_reach,
}


def head_weights(heads: HeadOutputs, rule: str) -> Tensor:
    """w_h(s), sums to 1 over heads; may be negative for "cosine" and "dot-product w/o clamp"   [B, H, S or 1]

    Under "dot-product" a pixel where every head is clamped away gets weight 1 per head.
    """
    raw = HEAD_RULES[rule](heads)
    weights = raw / raw.sum(1, keepdim=True)
    return weights.nan_to_num(nan=1.0) if rule == "dot-product" else weights
