"""Head-wise aggregation (arXiv 2603.06178): the weight of each head of a cross-attention at each pixel.

    o_h = A_h V_h W_h,    O = sum_h o_h,    w_h(s) = <o_h(s), O(s)> / sum_h' <o_h'(s), O(s)>

A_h are the attention probabilities of head h, V_h its values, W_h its rows of the output projection (without bias). No
[S, D] tensor per head is needed: <o_h, O> is computed from (P W) W^T with P = concat_h(A_h V_h), and |o_h| from the
small Gram matrices W_h W_h^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class HeadOutputs:
    """Inputs of head weighting in one attention layer, and quantities that several rules share.

    values      A_h V_h                                       [B, H, S, d]
    out_proj    the output projection's weight, without bias  [D, H*d]
    token_values V_h                                          [B, H, N, d]
    """

    values: Tensor
    out_proj: Tensor
    token_values: Tensor

    @cached_property
    def W(self) -> Tensor:
        """W_h, the output projection of each head: o_h = values_h @ W_h   [H, d, D]"""
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
    def output_norm(self) -> Tensor:
        """|O|, from |O|^2 = sum_h <o_h, O>   [B, 1, S]"""
        return self.dot.sum(1, keepdim=True).clamp(min=0).sqrt()

    @cached_property
    def value_norm(self) -> Tensor:
        """Spectral norm of each head's projected values V_h W_h   [B, H, 1]"""
        triangle = torch.linalg.qr(self.W.transpose(1, 2).float(), mode="r").R  # W_h^T = Q R, so |V W| = |V R^T|
        return torch.linalg.matrix_norm(self.token_values.float() @ triangle.transpose(1, 2), ord=2)[..., None]


def average(heads: HeadOutputs) -> Tensor:
    """Equal weights."""
    return torch.ones_like(heads.values[:, :, :1, 0], dtype=torch.float32)  # [B, H, 1]


def l2_norm(heads: HeadOutputs) -> Tensor:
    """|o_h|"""
    return heads.norm


def cosine(heads: HeadOutputs) -> Tensor:
    """cos(o_h, O)"""
    return heads.dot / (heads.norm * heads.output_norm)


def clamped_dot(heads: HeadOutputs) -> Tensor:
    """max(<o_h, O>, 0)"""
    return heads.dot.clamp(min=0)


def dot(heads: HeadOutputs) -> Tensor:
    """<o_h, O>"""
    return heads.dot


def cosine_value_norm(heads: HeadOutputs) -> Tensor:
    """cos(o_h, O) |V_h W_h|"""
    return cosine(heads) * heads.value_norm


def clamped_dot_value_norm(heads: HeadOutputs) -> Tensor:
    """max(<o_h, O>, 0) |V_h W_h|"""
    return clamped_dot(heads) * heads.value_norm


HEAD_RULES: dict[str, Callable[[HeadOutputs], Tensor]] = {
    "average": average,
    "l2-norm": l2_norm,
    "cosine": cosine,
    "dot-product": clamped_dot,
    "dot-product w/o clamp": dot,
    "cosine + VW": cosine_value_norm,
    "dot-product + VW": clamped_dot_value_norm,
}


def head_weights(heads: HeadOutputs, rule: str) -> Tensor:
    """Weights of the heads at each pixel.

    heads     of one layer, H heads
    rule      a name of HEAD_RULES
    returns   [B, H, S], or [B, H, 1] for "average"; sum 1 over heads. May be negative for "cosine" and "dot-product w/o
              clamp". Under "dot-product" a pixel where every head is clamped to 0 gets weight 1 per head

    >>> values = torch.tensor([[[[3.0, 0.0]], [[1.0, 0.0]]]])  # [B=1, H=2, S=1, d=2]
    >>> heads = HeadOutputs(values, torch.eye(2).repeat(1, 2), token_values=torch.ones(1, 2, 5, 2))
    >>> head_weights(heads, "dot-product w/o clamp")
    tensor([[[0.7500],
             [0.2500]]])
    """
    raw = HEAD_RULES[rule](heads)
    weights = raw / raw.sum(1, keepdim=True)
    return weights.nan_to_num(nan=1.0) if rule == "dot-product" else weights
