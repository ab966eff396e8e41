"""Masks and guidance rates at one step, recorded for the contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from goca.files.atomic import write_arrays
from goca.guidance import SemanticGuidance


class Recorder:
    """Records masks and rates of one call of the denoiser, inside the guidance's context."""

    def __init__(self, guidance: SemanticGuidance, step: int):
        self.guidance, self.step, self.calls = guidance, step, 0
        self.arrays: dict[str, Any] = {}
        self.hook = guidance.extractor.denoiser.register_forward_hook(self._after)  # runs after the guidance's hook

    def _after(self, *call: Any) -> None:
        if self.calls == self.step:
            assert self.guidance.token_mask is not None and self.guidance.foreground_mask is not None
            assert self.guidance.rate is not None
            self.arrays = {
                "tokens": self.guidance.token_mask.argmax(1).cpu().numpy().astype(np.int16),  # [B, g, g]
                "foreground": self.guidance.foreground_mask[:, 0].cpu().numpy().astype(bool),  # [B, g, g]
                "rate": self.guidance.rate[:, 0].cpu().numpy(),  # [B, h, w]
            }
        self.calls += 1

    def close(self) -> None:
        self.hook.remove()

    def save(self, path: Path, place: int) -> None:
        """Write those of one image of the batch to an .npz file."""
        write_arrays(path, {name: array[place] for name, array in self.arrays.items()})
