"""Prototypes: each class is represented by the mean feature under its map; a pixel gets the nearest class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from goca.refine.errors import RefineError
from goca.refine.images import check_maps, of_finite

EPSILON = 1e-6
SAME = "same"


def prototypes(scores: Tensor, dense: Tensor, size: int | tuple[int, int] | str) -> Tensor:
    """Assign each pixel to the class with the nearest prototype by cosine; one map of 0 and 1 per class.

    scores      [n, h, w]  resized to the feature's grid (nearest) as weights of the mean feature
    dense       [C, h', w']  a dense feature; resized to `size` (bicubic)
    size        side, or (height, width), of the result; "same": the feature's own size
    returns     [n, size, size]  one-hot over n; a map that is 0 on the feature's grid has no prototype and gets no
                pixels; a map with a NaN becomes NaN and does not affect the others
    errors      RefineError
    """
    check_maps(scores)
    if dense.ndim != 3 or not bool(dense.isfinite().all()):
        raise RefineError(f"the dense feature has the shape {list(dense.shape)}; expected finite values [C, h, w]")
    sides = dense.shape[1:] if size == SAME else (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise RefineError(f"size is {size!r}; expected a side of at least 1, (height, width) or {SAME!r}")
    target = int(sides[0]), int(sides[1])
    feature = dense.float().to(scores.device)
    pixels = F.interpolate(feature[None], target, mode="bicubic", align_corners=False)[0]  # [C, H, W]

    def nearest(maps: Tensor) -> Tensor:
        if len(maps) == 0:
            return maps.new_zeros(0, *target)
        weights = F.interpolate(maps[None].float(), feature.shape[1:], mode="nearest")[0]  # [n, h', w']
        mass = weights.sum((1, 2))[:, None]
        means = torch.einsum("nhw,chw->nc", weights, feature) / (mass + EPSILON)
        cosine = torch.einsum("nc,chw->nhw", F.normalize(means, dim=1), F.normalize(pixels, dim=0))
        empty = (weights == 0).all(-1).all(-1)[:, None, None]
        cosine = cosine.masked_fill(empty, -torch.inf)
        best = cosine.argmax(0) == torch.arange(len(maps), device=maps.device)[:, None, None]
        return (best & ~empty).to(maps)

    return of_finite(scores, nearest)
