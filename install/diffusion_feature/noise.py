"""How much noise `t` means. Schedulers are read or copied, never changed."""

from __future__ import annotations

from typing import Any

from diffusion_feature.backbone import NoiseLevel
from diffusion_feature.errors import ExtractorError

PIPELINE_STEPS = 1000  # the img2img arithmetic is done with this many inference steps


def variance_preserving(scheduler: Any, t: int, rule: str) -> NoiseLevel:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a the cumulated product of alphas.

    rule    "nominal": the timestep `t` itself, 0..999
            "pipeline": the first timestep of an img2img run of strength t/1000 in 1000 steps (PNDM: 100 -> 101)
    errors  ExtractorError for another rule, or t out of range
    """
    rules = {"nominal": lambda: t, "pipeline": lambda: strength_timestep(scheduler, t)}
    if rule not in rules:
        raise ExtractorError(f"noise rule {rule!r} is not known; there are: {', '.join(rules)}")
    alphas = scheduler.alphas_cumprod
    low = 0 if rule == "nominal" else 1
    if not low <= t < len(alphas) + low:
        raise ExtractorError(f"t is {t}; the {rule} rule of this scheduler takes {low}..{len(alphas) + low - 1}")
    timestep = rules[rule]()
    alpha = float(alphas[min(int(timestep), len(alphas) - 1)])
    return NoiseLevel(timestep, signal=alpha**0.5, noise=(1 - alpha) ** 0.5)


def strength_timestep(scheduler: Any, t: int) -> int:
    """The timestep at which an img2img pipeline starts at strength t/1000."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(PIPELINE_STEPS)
    kept = min(int(PIPELINE_STEPS * (t / 1000)), PIPELINE_STEPS)
    start = (PIPELINE_STEPS - kept) * getattr(scheduler, "order", 1)
    return int(scheduler.timesteps[start])
