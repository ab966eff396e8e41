"""The arguments of a denoiser's call by their names: timestep, latents, text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_feature.errors import ExtractorError

TIMESTEPS = ("timestep", "timesteps", "t")
LATENTS = ("sample", "hidden_states", "x")
TEXTS = ("encoder_hidden_states", "cap_feats")


class CallNotUnderstood(ExtractorError, ValueError):
    """A denoiser's call whose image and text tokens cannot be identified."""


@dataclass(frozen=True)
class Call:
    """One call of a denoiser.

    timestep  of the first sample, in the denoiser's unit
    latents   the noisy latents, one sample per row   [B, ...]
    text      the text's hidden states   [B, N, c]
    side      the latents' (h, w)
    beside    number of tokens of reference images, which follow the latents' own
    """

    timestep: float
    latents: Tensor
    text: Tensor
    side: tuple[int, int]
    beside: int = 0


def by_signature(given: Mapping[str, Any], patch: int) -> Call:
    """From arguments with their usual names: latents [B, c, h, w], or tokens with their places in `img_ids`.

    errors   CallNotUnderstood
    """
    latents, text = named(given, LATENTS), named(given, TEXTS)
    text = text[0] if isinstance(text, tuple) else text  # an IP-Adapter's images follow
    now = first_number(named(given, TIMESTEPS))
    if latents.ndim == 4:
        return Call(now, latents, text, (latents.shape[-2], latents.shape[-1]))
    if "img_ids" not in given:
        raise CallNotUnderstood(f"the denoiser was given latents of {list(latents.shape)} and no img_ids")
    side, beside = generated(given["img_ids"], patch)
    return Call(now, latents, text, side, beside)


def named(given: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The argument that has one of these names."""
    for name in names:
        if given.get(name) is not None:
            return given[name]
    raise CallNotUnderstood(f"the denoiser was given none of {', '.join(names)}; it was given: {', '.join(given)}")


def first_number(value: Any) -> float:
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def generated(ids: Tensor, patch: int) -> tuple[tuple[int, int], int]:
    """The latents' (h, w) from the places of their tokens, and how many tokens of other images follow.

    ids   (image, row, column, ...) of each token; the image that is generated has the lowest number, and comes first
          [S, 3 or 4] or [B, S, 3 or 4]
    """
    ids = ids.reshape(-1, *ids.shape[-2:])[0]
    mine = ids[:, 0] == ids[:, 0].min()
    own = int(mine.sum())
    first, last = (getattr(ids[mine][:, 1:3], end)(0) for end in ("amin", "amax"))
    h, w = (int(side) + 1 for side in last - first)
    if own != h * w or not bool(mine[:own].all()):
        raise CallNotUnderstood(
            f"the denoiser was given {own} tokens of the image, with places for {h} x {w}: their order is not known"
        )
    return (h * patch, w * patch), len(ids) - own
