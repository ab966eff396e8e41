"""The models of configs/model that no paper chose settings for, as tiny random pipelines: one entry each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import tiny_chat
import tiny_kolors
import tiny_large
import tiny_t5


@dataclass(frozen=True)
class Model:
    """A tiny pipeline, and what a test needs to know of it.

    save       writes the pipeline's folder
    pipeline   its class in diffusers
    version    the family's
    blocks     how many blocks have maps
    size       side of the images, in pixels; grid: of the maps
    call       of the pipeline, without guidance; guided: what a guided call adds; None: it has no halves
    together   the halves of guidance share a call
    as_drawn   the pipeline draws its first latents as the extractor draws noise, and its first timestep is 1000
    own        fields of the config that are other ones
    without    parts of the pipeline that are not needed
    without_softmax   attention modules that compute none (linear attention)
    """

    save: Callable[[Path], Path]
    pipeline: str
    version: str
    blocks: int = 3
    size: int = 32
    grid: int = 4
    call: dict[str, Any] = field(default_factory=dict)
    guided: dict[str, Any] | None = None
    together: bool = False
    as_drawn: bool = True
    without_softmax: int = 0
    without: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda pipe: None

    @property
    def config(self) -> dict[str, Any]:
        middle = self.blocks // 2
        return {
            "version": self.version,
            "img_size": self.size,
            "feat_size": self.grid,
            "t": 257,
            "ref_layer": f"vit-block{middle}-attn-out",
            "self_layers": [f"vit-block{middle}-self-map"],
            "head_method": "average",
        } | self.own

    def read(self, folder: Path) -> Any:
        pipe = getattr(diffusers, self.pipeline).from_pretrained(folder, **self.without)
        pipe.set_progress_bar_config(disable=True)
        self.prepare(pipe)
        return pipe

    def run(self, pipe: Any, prompt: Any, **more: Any) -> Any:
        size = {"height": self.size, "width": self.size}
        return pipe(prompt=prompt, **({"num_inference_steps": 2, "output_type": "np"} | size | self.call | more))


def small_kandinsky(pipe: Any) -> None:
    """It generates images of a few sizes only, the next one to what is asked."""
    pipe.resolutions = [(64, 64)]


MIDDLE = "vit-block{1/2}-attn-out"
PLAIN, GUIDED = {"guidance_scale": 1.0}, {"guidance_scale": 4.0}
ZOO = {
    "chroma": Model(tiny_t5.save_chroma, "ChromaPipeline", "chroma", 4, call=PLAIN, guided=GUIDED),
    "cogview3-plus": Model(
        tiny_t5.save_cogview3,
        "CogView3PlusPipeline",
        "cogview3-plus",
        call=PLAIN,
        guided=GUIDED,
        together=True,
        as_drawn=False,
    ),
    "bria-3.2": Model(tiny_t5.save_bria, "BriaPipeline", "bria-3.2", 4, call=PLAIN, guided=GUIDED, together=True),
    "sd35-large": Model(
        tiny_t5.save_sd35_large, "StableDiffusion3Pipeline", "sd3.5", call=PLAIN, guided=GUIDED, together=True
    ),
    "auraflow": Model(
        tiny_t5.save_auraflow, "AuraFlowPipeline", "auraflow", 4, call=PLAIN, guided=GUIDED, together=True
    ),
    "kandinsky5": Model(
        tiny_chat.save_kandinsky5,
        "Kandinsky5T2IPipeline",
        "kandinsky5",
        size=64,
        call=PLAIN,
        guided=GUIDED,
        as_drawn=False,
        prepare=small_kandinsky,
    ),
    "cogview4": Model(tiny_chat.save_cogview4, "CogView4Pipeline", "cogview4", call=PLAIN, guided=GUIDED),
    "ovis": Model(tiny_chat.save_ovis, "OvisImagePipeline", "ovis", 4, call=PLAIN, guided=GUIDED),
    "longcat": Model(
        tiny_chat.save_longcat,
        "LongCatImagePipeline",
        "longcat",
        4,
        call=PLAIN | {"enable_prompt_rewrite": False},
        without={"text_processor": None},
        guided=GUIDED,
    ),
    "lumina2": Model(tiny_chat.save_lumina2, "Lumina2Pipeline", "lumina2", size=64, call=PLAIN, guided=GUIDED),
    "qwen-image": Model(
        tiny_large.save_qwen_image,
        "QwenImagePipeline",
        "qwen-image",
        guided={"true_cfg_scale": 4.0, "negative_prompt": "wall"},
    ),
    "flux2-dev": Model(tiny_large.save_flux2_dev, "Flux2Pipeline", "flux2-dev", 4, size=64, call=PLAIN),
    "flux2-klein-4b": Model(
        tiny_large.save_flux2_klein, "Flux2KleinPipeline", "flux2-klein", 4, size=64, call=PLAIN, guided=GUIDED
    ),
    "z-image": Model(tiny_large.save_zimage, "ZImagePipeline", "z-image", call={"guidance_scale": 0.0}, guided=GUIDED),
    "hunyuan-image": Model(tiny_large.save_hunyuan_image, "HunyuanImagePipeline", "hunyuan-image", 4),
    "sana": Model(
        tiny_large.save_sana,
        "SanaPipeline",
        "sana",
        call=PLAIN | {"use_resolution_binning": False},
        guided=GUIDED,
        together=True,
        without_softmax=3,
        own={"self_layers": [], "layer_method": "vanilla", "refine": [{"activation_affinity": {"layer": MIDDLE}}]},
    ),
    "kolors": Model(
        tiny_kolors.save_kolors,
        "KolorsPipeline",
        "kolors",
        call=PLAIN,
        guided=GUIDED,
        together=True,
        as_drawn=False,
        own={
            "ref_layer": "up-level0-repeat0-vit-block0-cross-q",
            "self_layers": ["up-level0-repeat{0..2}-vit-block{0,1}-self-map"],
            "t": 100,
        },
    ),
}
