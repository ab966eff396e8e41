"""The arguments with which a pipeline is called to generate images: size, guidance, and those from the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goca.config import SegmenterConfig

TRUE_GUIDANCE = "true_cfg_scale"


def call_arguments(config: SegmenterConfig, prompts: int, guidance: float) -> dict[str, Any]:
    """Arguments of a pipeline's call besides the prompts, the steps and the generators.

    config     its `img_size` is the size of the images; its `call` holds further arguments
    prompts, guidance  as in `with_guidance`
    """
    height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
    return with_guidance({"height": height, "width": width, **config.call}, prompts, guidance)


def with_guidance(call: Mapping[str, Any], prompts: int, guidance: float) -> dict[str, Any]:
    """The arguments of a call with classifier-free guidance.

    call       the other arguments; if they contain `true_cfg_scale`, the guidance replaces its value, because the
               pipeline's `guidance_scale` means something else
    prompts    number of prompts; a negative prompt is repeated as often
    guidance   scale w in uncond + w * (text - uncond)
    """
    named = TRUE_GUIDANCE if TRUE_GUIDANCE in call else "guidance_scale"
    arguments = {**call, named: guidance}
    if isinstance(negative := arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [negative] * prompts
    return arguments
