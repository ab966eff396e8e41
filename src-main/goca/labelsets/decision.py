"""From score maps to a label map with doubt: pixels that are not certain get 255."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255


@dataclass(frozen=True)
class Decision:
    """A label map and how certain it is.

    label   class ids, 255 where it is not certain   uint8 [H, W]
    doubt   share of the pixels that are 255, 0..1
    areas   class id -> share of the pixels, 0 and 255 left out
    """

    label: np.ndarray
    doubt: float
    areas: dict[int, float]


@torch.no_grad()
def decide(
    scores: Tensor,
    class_ids: Sequence[int],
    size: tuple[int, int],
    doubt: float = 0.0,
    unsure: Collection[int] = (),
) -> Decision:
    """The class with the highest score at each pixel, or 255.

    scores     [n, g, g]; maps that share a class id count as one, the highest of them
    class_ids  of the n maps, 0..254; 0 is background
    size       (height, width) of the label map
    doubt      pixels whose best two classes lie closer than this are 255
    unsure     classes of low presence: the pixels that they would get are 255
    """
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite values; expected finite numbers (try --dtype float32)")
    ids = list(dict.fromkeys(class_ids))
    if outside := [each for each in ids if not 0 <= each < VOID]:
        raise ValueError(f"class id {outside[0]} does not fit a label map; expected 0..254")
    own = [torch.tensor([each == class_id for each in class_ids], device=scores.device) for class_id in ids]
    maps = F.interpolate(scores[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    maps = torch.stack([maps[mask].amax(0) for mask in own])  # [classes, H, W]
    label = torch.tensor(ids, device=maps.device)[maps.argmax(0)]
    void = torch.isin(label, torch.tensor(sorted(unsure), device=label.device, dtype=label.dtype))
    if len(ids) > 1:
        best, second = maps.topk(2, dim=0).values
        void |= best - second < doubt
    found = label.masked_fill(void, VOID).cpu().numpy().astype(np.uint8)
    areas = {class_id: float((found == class_id).mean()) for class_id in ids if class_id}
    return Decision(found, float((found == VOID).mean()), areas)
