"""DenseCRF: pixels that are near each other, or near and alike in colour, prefer the same class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from goca.method.rescaling import min_max
from goca.refine.errors import DenseCRFMissing, RefineError
from goca.refine.images import bounded, check_maps, of_finite, rgb_tensor

BGR_MEAN = (104.008, 116.669, 122.675)
LEAST_PROBABILITY = 1e-5  # lower limit in unary energies -log p


def dense_crf(
    scores: Tensor,
    image: Any,
    protocol: str = "paper",
    iterations: int = 10,
    gaussian_sxy: float = 1,
    gaussian_compat: float = 3,
    bilateral_sxy: float = 67,
    bilateral_srgb: float = 3,
    bilateral_compat: float = 4,
) -> Tensor:
    """A fully connected CRF over the image's pixels (Kraehenbuehl and Koltun, 2011), solved by mean field.

    scores      [n, h, w]; resized to the image's size (bicubic), clamped at 0, min-max per map
    image       RGB, see `rgb_tensor`
    protocol    "paper": the image unchanged, probabilities that sum to 1 at each pixel (equal where all maps are 0)
                "released": BGR minus its mean, wrapped into 0..255, and the maps themselves
    returns     [n, H, W]  probabilities at the image's size, sum 1; a single map becomes 1 everywhere, and a map with
                a NaN becomes NaN and does not affect the others
    errors      DenseCRFMissing, RefineError; warns ImageReduced if n * H * W exceeds 2^28
    """
    check_maps(scores)
    if protocol not in CRF_INPUTS:
        raise RefineError(f"unknown dense_crf protocol {protocol!r}; expected one of: {', '.join(CRF_INPUTS)}")
    if iterations < 0:
        raise RefineError(f"dense_crf iterations is {iterations}; it must be at least 0")
    densecrf = load_densecrf()
    rgb = bounded(rgb_tensor(image), len(scores))
    probabilities, pixels = CRF_INPUTS[protocol]
    unsigned = np.ascontiguousarray(pixels(rgb.permute(1, 2, 0).cpu().numpy()))  # [H, W, 3] uint8

    def infer(maps: Tensor) -> Tensor:
        n, (h, w) = len(maps), rgb.shape[1:]
        if n == 0:
            return maps.new_zeros(0, h, w, dtype=torch.float32)
        resized = F.interpolate(maps[None].float(), (h, w), mode="bicubic", align_corners=False)[0]
        unary = -probabilities(min_max(resized.clamp(min=0))).clamp(LEAST_PROBABILITY, 1).log()
        crf = densecrf.DenseCRF2D(w, h, n)
        crf.setUnaryEnergy(np.ascontiguousarray(unary.flatten(1).cpu().numpy()))
        crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_compat)
        crf.addPairwiseBilateral(sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=unsigned, compat=bilateral_compat)
        found = np.array(crf.inference(iterations), dtype=np.float32)
        return torch.from_numpy(found).view(n, h, w).to(scores.device)

    return of_finite(scores, infer)


def load_densecrf() -> Any:
    """Import pydensecrf.densecrf. Raises DenseCRFMissing, with instructions to install it."""
    try:
        from pydensecrf import densecrf
    except ImportError as error:
        raise DenseCRFMissing(
            f"dense_crf needs pydensecrf ({error}); `pip install goca[crf]` compiles it (gcc is needed)"
        ) from error
    return densecrf


def shares(maps: Tensor) -> Tensor:
    """Maps divided by their sum at each pixel; equal shares where that is 0."""
    total = maps.sum(0)
    return torch.where(total > 0, maps / total, 1 / len(maps))


def wrapped_bgr(rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    """BGR minus the mean, truncated to integers; negative values wrap modulo 256."""
    return (rgb[..., ::-1].astype(np.float64) - BGR_MEAN).astype(np.int64).astype(np.uint8)


Inputs = tuple[Callable[[Tensor], Tensor], Callable[[NDArray[np.float32]], NDArray[np.uint8]]]
CRF_INPUTS: dict[str, Inputs] = {
    "paper": (shares, lambda rgb: rgb.round().astype(np.uint8)),
    "released": (lambda maps: maps, wrapped_bgr),
}
