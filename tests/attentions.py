"""Random attentions as the tap hands them over, and their softmax in float64."""

import torch
from diffusion_feature import Attention, AttentionLayer
from diffusion_feature.attention import LAYOUTS


def attention(layout, grid, heads=3, width=5, tokens=7, block="b", seed=0, dtype=torch.float32, sharp=2.0):
    """A random attention as the tap would hand it over."""
    g = torch.Generator().manual_seed(seed)
    S = grid[0] * grid[1]
    K = S if layout == "self" else tokens
    q, k, v = (torch.randn(1, heads, n, width, generator=g, dtype=torch.float64) for n in (S, K, K))
    q = q * sharp
    W = torch.randn(heads * width + 2, heads * width, generator=g, dtype=torch.float64)
    q, k, v, W = (x.to(dtype) for x in (q, k, v, W))
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    layer = AttentionLayer(block, layout, torch.nn.Identity(), lambda: W)
    return Attention(layer, q, k, v, None, None, result, grid, **LAYOUTS[layout](S, K))


def literal(a):
    """A [H, S, K], V [H, K, d], W [H*d, D] of an attention, in float64."""
    q, k, v = (x[0].double() for x in (a.query, a.key, a.value))
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1), v, a.layer.out_proj().double().T
