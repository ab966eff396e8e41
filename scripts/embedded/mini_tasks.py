"""What the small models learn to predict, from latents with noise: velocities of a schedule, or of a rectified flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One batch of what a denoiser learns: noised latents, their timesteps, what to predict, weights [B, 1, 1, 1]."""

    noised: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor | float = 1.0


def velocity(
    levels: Tensor, spread: tuple[float, float] | None = None, cap: float | None = None
) -> Callable[[Tensor, torch.Generator], Task]:
    """v = sqrt(a) e - sqrt(1 - a) x at timesteps of a schedule `levels` of cumulated alphas [T].

    spread  timesteps are logit-normal with this mean and deviation; None: uniform
    cap     the loss on x counts at most as at this signal-to-noise ratio (min-SNR's idea, on top of v's SNR + 1)
    """

    def task(clean: Tensor, generator: torch.Generator) -> Task:
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        if spread is None:
            t = torch.randint(0, len(levels), (len(clean),), generator=generator, device=clean.device)
        else:
            normal = torch.randn(len(clean), generator=generator, device=clean.device)
            t = (torch.sigmoid(spread[0] + spread[1] * normal) * len(levels)).long().clamp_max(len(levels) - 1)
        level = levels[t][:, None, None, None]
        signal, sigma = level.sqrt(), (1 - level).sqrt()
        weight = 1.0 if cap is None else ((cap + 1) * (1 - level)).clamp_max(1.0)  # SNR + 1 = 1 / (1 - a)
        return Task(signal * clean + sigma * noise, t, signal * noise - sigma * clean, weight)

    return task


def rectified_flow(clean: Tensor, generator: torch.Generator) -> Task:
    """x_s = (1 - s) x + s e, to be told e - x; s is logit-normal   (Esser et al., 2024)"""
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    s = torch.sigmoid(torch.randn(len(clean), generator=generator, device=clean.device))
    part = s[:, None, None, None]
    return Task((1 - part) * clean + part * noise, s, noise - clean)
