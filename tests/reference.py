"""The method as literally as its equations, in float64: every head's output, every map resized whole, nothing clever.

Slow on purpose. The library must agree with it.
"""

import torch
import torch.nn.functional as F
from scipy.stats import rankdata

EPS = 1e-4


def head_outputs(A, V, W):
    """o_h = A_h V_h W_h   A [H, S, N], V [H, N, d], W [H*d, D] -> [H, S, D]"""
    d = V.shape[-1]
    return torch.stack([A[h] @ V[h] @ W[h * d : (h + 1) * d] for h in range(len(A))])


def head_weights(A, V, W, rule):
    """[S, H]"""
    o = head_outputs(A, V, W)
    total = o.sum(0)  # [S, D]
    d = V.shape[-1]
    spectral = [torch.linalg.matrix_norm(V[h] @ W[h * d : (h + 1) * d], ord=2) for h in range(len(A))]
    columns = []
    for h in range(len(A)):
        dot = (o[h] * total).sum(-1)
        cosine = dot / (o[h].norm(dim=-1) * total.norm(dim=-1))
        columns.append(
            {
                "average": torch.ones_like(dot),
                "l2-norm": o[h].norm(dim=-1),
                "cosine": cosine,
                "dot-product": dot.clamp(min=0),
                "dot-product w/o clamp": dot,
                "cosine + VW": cosine * spectral[h],
                "dot-product + VW": dot.clamp(min=0) * spectral[h],
            }[rule]
        )
    w = torch.stack(columns, dim=-1)
    return w / w.sum(-1, keepdim=True)


def aggregate_heads(A, V, W, rule):
    """[S, N]"""
    w = head_weights(A, V, W, rule)
    return sum(w[:, h, None] * A[h] for h in range(len(A)))


def resize_self_map(S, source, target, normalised):
    """Key axes bilinearly, query axes by nearest neighbour   [S, S] -> [R, R]

    Only what is resized is normalised: the image's part of a joint softmax keeps the sum it has.
    """
    if source == target:
        return S
    (h, w), (H, W) = source, target
    maps = F.interpolate(S.view(1, h * w, h, w), size=target, mode="bilinear", align_corners=False)
    maps = maps.view(h, w, H * W).permute(2, 0, 1)[None]  # queries last
    maps = F.interpolate(maps, size=target, mode="nearest")[0].flatten(1).T  # [R, R]
    return maps / maps.sum(-1, keepdim=True) if normalised else maps


def reference_affinity(feature, first_only):
    """feature [c, h, w] -> [R, R]"""
    feature = feature[:1] if first_only else feature
    F_ = feature.flatten(1).T
    return torch.softmax(F_ @ F_.T / feature.shape[0] ** 0.5, dim=-1)


def similarity(Ref, S, rule):
    return {
        "dot-product similarity": lambda: (Ref * S).sum(),
        "mse": lambda: 1 / sum((Ref[i] - S[i]).norm() for i in range(len(Ref))),
        "iou-like": lambda: torch.minimum(Ref, S).sum() / (torch.maximum(Ref, S).sum() + EPS),
        "vanilla": lambda: torch.tensor(1.0, dtype=Ref.dtype),
    }[rule]()


def layer_weights(feature, self_maps, grids, rule, first_only, normalised):
    """self_maps: head means, one [S, S] per layer -> [M]"""
    Ref, target = reference_affinity(feature, first_only), tuple(feature.shape[1:])
    w = torch.stack(
        [similarity(Ref, resize_self_map(S, grid, target, normalised), rule) for S, grid in zip(self_maps, grids)]
    )
    w = w.clamp(min=0)
    return w / w.sum()


def aggregate_layers(maps, grids, weights, target):
    """maps: one [S, N] per layer -> [g, g, N]"""
    total = 0
    for A, grid, w in zip(maps, grids, weights):
        picture = A.T.reshape(1, -1, *grid)
        total = total + w * F.interpolate(picture, size=target, mode="bilinear", align_corners=False)[0]
    total = total.clamp(min=0)
    return (total / total.sum(0, keepdim=True)).permute(1, 2, 0)


def space_map(self_maps, grids, target, normalised):
    return sum(resize_self_map(S, g, target, normalised) for S, g in zip(self_maps, grids)) / len(self_maps)


def blur(m):
    """5 x 5, sigma 1.1, reflect   [h, w]"""
    p = F.pad(m[None, None], (2, 2, 2, 2), mode="reflect")[0, 0]
    k = torch.tensor([[-(i * i + j * j) / (2 * 1.1**2) for j in range(-2, 3)] for i in range(-2, 3)], dtype=m.dtype)
    k = k.exp() / k.exp().sum()
    h, w = m.shape
    return sum(k[i, j] * p[i : i + h, j : j + w] for i in range(5) for j in range(5))


def min_max(m):
    return (m - m.min()) / (m.max() - m.min())


def ranked(m):
    return torch.from_numpy(rankdata(m.numpy(), axis=None).reshape(m.shape))


def rescale(attention, tokens, content, rule):
    """attention [h, w, N] -> one map [h, w]"""
    raw = attention[..., tokens].mean(-1)
    share = raw / attention[..., content].sum(-1)
    return {
        "raw": lambda: raw,
        "per-token renorm": lambda: raw / raw.max(),
        "per-token renorm+": lambda: min_max(blur(raw)),
        "sum-1 rescaling": lambda: share,
        "sum-1 rescaling + per-token renorm": lambda: share / share.max(),
        "sum-1 rescaling + per-token renorm+": lambda: min_max(blur(share)),
        "sum-1 rescaling + per-token ranking renorm": lambda: min_max(ranked(share)),
        "sum-1 rescaling + per-token renorm x raw": lambda: share / share.max() * raw,
        "sum-1 rescaling + per-token renorm+ x raw": lambda: min_max(blur(share)) * raw,
        "sum-1 rescaling + per-token renorm+ x raw + renorm": lambda: min_max(blur(min_max(blur(share)) * raw)),
    }[rule]()


def affinity(scores, S, order):
    """scores [K, h, w], S [h*w, h*w]"""
    refined = []
    for m in scores:
        v = m.flatten()
        for _ in range(order):
            v = S @ v
        refined.append(min_max(v).view_as(m))
    return torch.stack(refined)


def softmax_of(query, key, mask=None, scale=None):
    """Probabilities of one attention call, all at once   [B, H, S, K]"""
    logits = torch.einsum("bhsd,bhkd->bhsk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)
