"""Noise level of a timestep `t`. Schedulers are read or copied, never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_feature.backbone import NoiseLevel
from diffusion_feature.errors import ExtractorError

TRAINED_STEPS = 1000
NEAR = 10  # maximum difference between a run's first timestep and the requested t, if its steps are not larger

STRANGE = (ValueError, TypeError, AttributeError, IndexError, KeyError)  # errors of schedulers with another interface
NOMINAL = "or take the noise that t names: protocol.noise=nominal"
OTHER_SCHEDULER = f"Use `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`, {NOMINAL}"
FLOW_SCHEDULER = f"Use `pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)`, {NOMINAL}"


def variance_preserving(
    scheduler: Any, t: int, rule: str, latents: tuple[int, int] | None = None, *, steps: int = 1000
) -> NoiseLevel:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a the cumulated product of alphas.

    rule    "nominal": the timestep `t` itself, 0..999
            "pipeline": the first timestep of an img2img run of strength t/1000 in `steps` steps (PNDM: 100 -> 101)
    errors  ExtractorError for an unknown rule, t out of range, or a scheduler whose noise at t is unknown
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or not len(alphas):
        raise ExtractorError(
            f"{type(scheduler).__name__} has no alphas_cumprod, so the noise of a timestep is not known: it is "
            "not made for this model. Use the scheduler that the model was published with, or a DDIMScheduler with "
            "its betas"
        )
    low, high = (0, len(alphas) - 1) if rule == "nominal" else (ceil(TRAINED_STEPS / steps), TRAINED_STEPS)
    timestep = by_rule(rule, t, low, high, {"nominal": lambda: t, "pipeline": lambda: first_step(scheduler, t, steps)})
    alpha = float(alphas[min(int(timestep), len(alphas) - 1)])
    if abs(timestep - t) > max(TRAINED_STEPS / steps, NEAR) + 1:
        raise ExtractorError(
            f"{type(scheduler).__name__} starts at timestep {timestep} (noise {(1 - alpha) ** 0.5:.3f}) where t = {t} "
            f"means {t} (noise {(1 - float(alphas[t])) ** 0.5:.3f}). {OTHER_SCHEDULER}"
        )
    return NoiseLevel(timestep, signal=alpha**0.5, noise=(1 - alpha) ** 0.5)


def rectified_flow(
    scheduler: Any,
    t: int,
    rule: str,
    latents: tuple[int, int],
    *,
    steps: int = 28,
    spaced: bool = False,
    shift_of: Callable[[Any, tuple[int, int], int], float] | None = None,
) -> NoiseLevel:
    """x_t = (1 - s) x_0 + s e; the timestep is 1000 s.

    rule    "nominal": s = t/1000
            "pipeline": the first s of an img2img run of strength t/1000 in `steps` steps, shifted as the scheduler says
    latents (h, w); the shift may depend on the number of image tokens, 2 x 2 latent pixels each
    spaced  whether the steps before the shift are 1, ..., 1/steps, as in Flux's pipeline; otherwise the scheduler's own
    shift_of  (scheduler's config, latents, steps) -> mu, for pipelines with their own formula
    errors  ExtractorError for an unknown rule, t out of range, or an unsuitable scheduler under "pipeline"
    """

    def first_sigma() -> float:
        ours = type(scheduler).from_config(scheduler.config)
        try:
            mu = shift_of or dynamic_shift
            shift = {"mu": mu(ours.config, latents, steps)} if ours.config.use_dynamic_shifting else {}
            even = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if spaced else {"num_inference_steps": steps}
            ours.set_timesteps(**even, **shift)
            first = first_of(steps, t) * ours.order
            sigma, timestep = float(ours.sigmas[first]), float(ours.timesteps[first])
        except STRANGE as error:
            name = type(ours).__name__
            raise ExtractorError(f"{name} has no step for t = {t} ({error}). {FLOW_SCHEDULER}") from error
        if abs(sigma * TRAINED_STEPS - timestep) > 1:
            raise ExtractorError(
                f"{type(ours).__name__} starts at timestep {timestep:g} with sigma {sigma:.3g}; a flow model's "
                f"timestep is 1000 sigma. {FLOW_SCHEDULER}"
            )
        return sigma

    low, high = (0, TRAINED_STEPS) if rule == "nominal" else (ceil(TRAINED_STEPS / steps), TRAINED_STEPS)
    sigma = by_rule(rule, t, low, high, {"nominal": lambda: t / TRAINED_STEPS, "pipeline": first_sigma})
    return NoiseLevel(sigma * TRAINED_STEPS, 1 - sigma, sigma, as_pipeline=rule == "pipeline", flow=True)


def target(scheduler: Any, level: NoiseLevel, clean: Tensor, noise: Tensor, reversed_time: bool = False) -> Tensor:
    """The training target of the denoiser at a noise level, by the scheduler's prediction_type.

    clean, noise    x_0 and e   [B, c, h, w]
    reversed_time   rectified flow with a velocity that points from the noise to the image
    errors          ExtractorError for an unknown prediction_type
    """
    if level.flow:
        return clean - noise if reversed_time else noise - clean
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind not in TARGETS:
        raise ExtractorError(
            f"{type(scheduler).__name__} has the prediction_type {kind!r}; expected one of: {', '.join(TARGETS)}"
        )
    return TARGETS[kind](level, clean, noise)


TARGETS: dict[str, Callable[[NoiseLevel, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda level, clean, noise: noise,
    "v_prediction": lambda level, clean, noise: level.signal * noise - level.noise * clean,
    "sample": lambda level, clean, noise: clean,
}


def by_rule(rule: str, t: int, low: int, high: int, rules: Mapping[str, Callable[[], float]]) -> float:
    if rule not in rules:
        raise ExtractorError(f"unknown noise rule {rule!r}; expected one of: {', '.join(rules)}")
    if not low <= t <= high:
        raise ExtractorError(f"t is {t}; the {rule} rule of this scheduler allows {low}..{high}")
    return rules[rule]()


def first_of(steps: int, t: int) -> int:
    """Index of the first step of an img2img pipeline at strength t/1000."""
    return int(max(steps - min(steps * (t / TRAINED_STEPS), steps), 0))


def first_step(scheduler: Any, t: int, steps: int) -> int:
    """The timestep at which an img2img pipeline starts at strength t/1000. Raises ExtractorError."""
    ours = type(scheduler).from_config(scheduler.config)
    kept = min(int(steps * (t / TRAINED_STEPS)), steps)
    try:
        ours.set_timesteps(steps)
        return int(ours.timesteps[(steps - kept) * getattr(ours, "order", 1)])
    except STRANGE as error:
        raise ExtractorError(f"{type(ours).__name__} has no step for t = {t} ({error}). {OTHER_SCHEDULER}") from error


def dynamic_shift(config: Any, latents: tuple[int, int], steps: int = 0) -> float:
    """mu: a straight line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift)."""
    tokens = (latents[0] // 2) * (latents[1] // 2)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)
