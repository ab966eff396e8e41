"""What a run is computed on: this process's device, and the record of device, dtype and code."""

from __future__ import annotations

import os
from typing import Any

from goca.report.provenance import revision, versions
from goca.segmentation_model import SegmentationModel


def own_device(device: str) -> str:
    """Under a launcher that starts several processes, this one's accelerator; where they are more, they take turns."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    if device != "auto" or not local or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def origin(segmenter: SegmentationModel) -> dict[str, Any]:
    """What the model really runs on, and the code."""
    import torch
    from diffusion_feature.devices import like

    weight = like(segmenter.extractor.denoiser)
    name = f" ({torch.cuda.get_device_name(weight.device)})" if weight.is_cuda else ""
    place = {"device": f"{weight.device.type}{name}", "dtype": str(weight.dtype).removeprefix("torch.")}
    return {**place, "revision": revision(), "versions": versions()}
