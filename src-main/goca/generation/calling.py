"""How a pipeline is called to generate images: size and guidance, and what else a model's config says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goca.config import SegmenterConfig

TRUE_GUIDANCE = "true_cfg_scale"


def call_arguments(config: SegmenterConfig, prompts: int, guidance: float) -> dict[str, Any]:
    """Arguments of a pipeline's call beside the prompts, the steps and the generators.

    config     its `img_size` is the size of the images; its `call` goes to the pipeline, as `with_guidance` has it
    prompts, guidance  as there
    """
    height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
    return with_guidance({"height": height, "width": width, **config.call}, prompts, guidance)


def with_guidance(call: Mapping[str, Any], prompts: int, guidance: float) -> dict[str, Any]:
    """The arguments of a call with classifier-free guidance.

    call       the other arguments. A pipeline whose own `guidance_scale` is something else has `true_cfg_scale` among
               them, in whose place the guidance goes
    prompts    of the call: the pipeline wants as many negative prompts, where there is one
    guidance   scale w in uncond + w * (text - uncond)
    """
    named = TRUE_GUIDANCE if TRUE_GUIDANCE in call else "guidance_scale"
    arguments = {**call, named: guidance}
    if isinstance(negative := arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [negative] * prompts
    return arguments
