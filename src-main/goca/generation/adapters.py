"""The config that fits a diffusers pipeline object, and the object's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion_feature import FeatureExtractor, WrongFamily
from diffusion_feature.extractor import refuse_unnamed
from diffusion_feature.families import backbone
from diffusion_feature.modules import unwrapped
from diffusion_feature.reading import DENOISERS, refuse_inputs, refuse_other

from goca.errors import GocaError


class ConfigNotKnown(GocaError, ValueError):
    """None of configs/model fits the pipeline."""


EMBEDDED_WIDTH = 96  # of the text states of the models that ship with the package; no published model's


def of_unet(pipe: Any, config: Any) -> str | None:
    if config.addition_embed_type == "text_time":
        return "kolors" if config.encoder_hid_dim_type == "text_proj" else "sdxl"
    wide = "sd21-base" if config.sample_size == 64 else "sd21"
    mini = "mini-sd-small" if config.block_out_channels[0] == 48 else "mini-sd"
    return {768: "sd15", 1024: wide, EMBEDDED_WIDTH: mini}.get(config.cross_attention_dim)


def of_pixart(pipe: Any, config: Any) -> str:
    if config.caption_channels == EMBEDDED_WIDTH:
        return "mini-pixart"
    if "Sigma" not in type(pipe).__name__:
        return "pixart-alpha"
    return "pixart-sigma-512" if config.sample_size == 64 else "pixart-sigma"


def of_flux(pipe: Any, config: Any) -> str:
    return "mini-flux" if config.joint_attention_dim == EMBEDDED_WIDTH else "flux"


def of_sd3(pipe: Any, config: Any) -> str:
    if not config.qk_norm:
        return "sd3"
    return "sd35-medium" if config.dual_attention_layers else "sd35-large"


def of_flux2(pipe: Any, config: Any) -> str:
    if config.guidance_embeds:
        return "flux2-dev"
    return "flux2-klein-9b" if config.num_attention_heads > 24 else "flux2-klein-4b"


# class of the denoiser -> the config's name, from the pipeline and the denoiser's own config; None: not known
CONFIGS: dict[str, Callable[[Any, Any], str | None]] = {
    "UNet2DConditionModel": of_unet,
    "PixArtTransformer2DModel": of_pixart,
    "HunyuanDiT2DModel": lambda pipe, config: "hunyuan",
    "FluxTransformer2DModel": of_flux,
    "SD3Transformer2DModel": of_sd3,
    "ChromaTransformer2DModel": lambda pipe, config: "chroma",
    "CogView3PlusTransformer2DModel": lambda pipe, config: "cogview3-plus",
    "BriaTransformer2DModel": lambda pipe, config: "bria-3.2",
    "AuraFlowTransformer2DModel": lambda pipe, config: "auraflow",
    "Kandinsky5Transformer3DModel": lambda pipe, config: "kandinsky5",
    "CogView4Transformer2DModel": lambda pipe, config: "cogview4",
    "OvisImageTransformer2DModel": lambda pipe, config: "ovis",
    "LongCatImageTransformer2DModel": lambda pipe, config: "longcat",
    "Lumina2Transformer2DModel": lambda pipe, config: "lumina2",
    "QwenImageTransformer2DModel": lambda pipe, config: "qwen-image",
    "Flux2Transformer2DModel": of_flux2,
    "ZImageTransformer2DModel": lambda pipe, config: "z-image",
    "HunyuanImageTransformer2DModel": lambda pipe, config: "hunyuan-image",
    "SanaTransformer2DModel": lambda pipe, config: "sana",
}


def config_of(pipe: Any) -> str:
    """The name in configs/model that fits a pipeline. Raises ConfigNotKnown where none is known."""
    parts = (getattr(pipe, name, None) for name in DENOISERS)
    denoiser: Any = unwrapped(next((part for part in parts if part is not None), None))
    kind = type(denoiser).__name__
    name = CONFIGS[kind](pipe, denoiser.config) if kind in CONFIGS else None
    if name is None:
        raise ConfigNotKnown(f"no config is known for the {kind} of this {type(pipe).__name__}; give one: config=...")
    return name


class PipelineLayers(FeatureExtractor):
    """The layers of a pipeline that is in use: nothing of it is loaded, moved or brought to another type."""

    def __init__(self, pipe: Any, version: str):
        self.backbone, self.version = backbone(version), version
        names = self.backbone.parts + self.backbone.optional
        self.parts = {name: part for name in names if (part := getattr(pipe, name, None)) is not None}
        if self.backbone.denoiser not in self.parts:
            found, asked = type(pipe).__name__, self.backbone.denoiser
            raise ConfigNotKnown(f"{found} has no {asked!r}, but {self.backbone.name} has; choose another config")
        if self.backbone.template is not None and "Edit" in type(pipe).__name__:
            raise WrongFamily(
                f"{type(pipe).__name__} reads an image within its prompt, so which token is whose is not known; "
                "trace a text-to-image pipeline"
            )
        refuse_other(self.denoiser, self.backbone)
        self.layers = self.backbone.layers(self.denoiser)
        self.features = self.backbone.features(self.denoiser)

    def refuse_further_inputs(self) -> None:
        """Raises WrongFamily for a denoiser with inputs beside the noisy image or attentions that are not known."""
        refuse_inputs(self.parts, self.backbone)
        refuse_unnamed(self.denoiser, [layer.module for layer in self.layers], self.backbone.left_alone)
