"""How a pipeline is called to generate images: size and guidance, and what else a model's config says."""

from __future__ import annotations

from typing import Any

from goca.config import SegmenterConfig

TRUE_GUIDANCE = "true_cfg_scale"


def call_arguments(config: SegmenterConfig, prompts: int, guidance: float) -> dict[str, Any]:
    """Arguments of a pipeline's call beside the prompts, the steps and the generators.

    config     its `img_size` is the size of the images; its `call` goes to the pipeline as it is
    prompts    of the call: the pipeline wants as many negative prompts, where the config has one
    guidance   scale of classifier-free guidance, w in uncond + w * (text - uncond). Pipelines whose own
               `guidance_scale` is something else take it as `true_cfg_scale`, which `call` names for these
    """
    height, width = (config.img_size,) * 2 if isinstance(config.img_size, int) else config.img_size
    named = TRUE_GUIDANCE if TRUE_GUIDANCE in config.call else "guidance_scale"
    arguments = {"height": height, "width": width, **config.call, named: guidance}
    if isinstance(negative := arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [negative] * prompts
    return arguments
