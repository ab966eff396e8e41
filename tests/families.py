"""The families that the paper and its relatives set, on tiny pipelines: how each is called, and what is found where."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tiny import save_flux, save_hunyuan, save_pixart, save_sd, save_sd3, save_sd21, save_sdxl


@dataclass(frozen=True)
class Family:
    """A tiny pipeline, how the method is set to it, and how diffusers' own pipeline is called for comparison."""

    save: Callable[[Path], Path]
    version: str
    reference: str
    space: str
    feat_size: int
    picture: int = 32
    prompt: tuple = ((1, 3, 5), 12)  # where the entities of "cat, grass, sky" are, and the number of text tokens
    pipeline: str = ""
    call: dict = field(default_factory=dict)
    t: int = 100

    @property
    def config(self):
        layers = {"ref_layer": self.reference, "cross_layers": "all", "self_layers": [self.space]}
        return {"version": self.version, "img_size": self.picture, "feat_size": self.feat_size, "t": self.t} | layers


UP, VIT = "up-level1-repeat{0,1}-vit-block0-self-map", "vit-block{1,2}-self-map"
IMG2IMG = {"strength": 0.1, "num_inference_steps": 1000, "guidance_scale": 1.0}
FLOW = {"strength": 0.15, "num_inference_steps": 28, "guidance_scale": 1.0, "height": 32, "width": 32}
FROM_NOISE = {"num_inference_steps": 2, "guidance_scale": 1.0, "use_resolution_binning": False}
FAMILIES = {
    "sd": Family(
        save_sd,
        "1-5",
        "up-level1-repeat1-vit-block0-cross-q",
        UP,
        8,
        pipeline="StableDiffusionImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "sd21": Family(
        save_sd21,
        "2-1",
        "up-level1-repeat1-vit-block0-cross-q",
        UP,
        8,
        pipeline="StableDiffusionImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "sdxl": Family(
        save_sdxl,
        "xl",
        "up-level0-repeat0-vit-block0-cross-q",
        "up-level0-repeat{0..2}-vit-block{0,1}-self-map",
        8,
        pipeline="StableDiffusionXLImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "pixart": Family(
        save_pixart,
        "pixart-alpha",
        "vit-block1-cross-q",
        VIT,
        4,
        prompt=((0, 2, 4), 120),
        pipeline="PixArtAlphaPipeline",
        call=FROM_NOISE | {"height": 32, "width": 32},
    ),
    "hunyuan": Family(
        save_hunyuan,
        "hunyuan",
        "vit-block2-cross-q",
        VIT,
        4,
        64,
        ((1, 77, 3, 79, 5, 81), 77 + 256),
        pipeline="HunyuanDiTPipeline",
        call=FROM_NOISE | {"height": 64, "width": 64},
    ),
    "flux": Family(
        save_flux,
        "flux",
        "vit-block2-attn-out",
        VIT,
        4,
        prompt=((0, 2, 4), 512),
        pipeline="FluxImg2ImgPipeline",
        call=FLOW,
        t=150,
    ),
    "sd3": Family(
        save_sd3,
        "sd3",
        "vit-block1-attn-out",
        VIT,
        4,
        prompt=((1, 3, 5), 12 + 256),
        pipeline="StableDiffusion3Img2ImgPipeline",
        call=FLOW,
        t=150,
    ),
}
