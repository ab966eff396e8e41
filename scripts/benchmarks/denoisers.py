"""Full-size denoisers with random weights, from their public configurations, without a download.

Configurations are those in the `config.json` of each model's published weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusion_feature import expand_layers
from diffusion_feature.backbone import AttentionLayer, DenseFeature
from diffusion_feature.families import backbone
from goca.config import SegmenterConfig, load_config
from goca.method.aggregation import Plan
from torch import Tensor, nn

Random = Callable[..., Tensor]


def sd15_inputs(random: Random) -> dict[str, Any]:
    return {"sample": random(1, 4, 64, 64), "timestep": torch.tensor(100), "encoder_hidden_states": random(1, 77, 768)}


def sdxl_inputs(random: Random) -> dict[str, Any]:
    known = {"text_embeds": random(1, 1280), "time_ids": random(1, 6)}
    return {
        "sample": random(1, 4, 128, 128),
        "timestep": torch.tensor(100),
        "added_cond_kwargs": known,
        "encoder_hidden_states": random(1, 77, 2048),
    }


def pixart_inputs(random: Random) -> dict[str, Any]:
    return {
        "hidden_states": random(1, 4, 128, 128),
        "encoder_hidden_states": random(1, 300, 4096),
        "timestep": random(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux_inputs(random: Random) -> dict[str, Any]:
    return {
        "hidden_states": random(1, 4096, 64),
        "encoder_hidden_states": random(1, 512, 4096),
        "pooled_projections": random(1, 768),
        "timestep": random(1),
        "guidance": random(1),
        "img_ids": random(4096, 3),
        "txt_ids": random(512, 3),
    }


@dataclass(frozen=True)
class Model:
    """A denoiser: its class and configuration, the settings in configs/model, its latents and inputs.

    side     side of its latents
    target   bytes that the method may hold beyond the forward pass
    goal     goal for method / bare, of the whole model or of its attention layers
    """

    title: str
    kind: str
    settings: str
    config: dict[str, Any]
    inputs: Callable[[Random], dict[str, Any]]
    side: int
    dtype: torch.dtype
    target: float
    goal: float

    def build(self, device: torch.device | str) -> Denoiser:
        """Build the denoiser with random weights; on "meta" without weights."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(self.dtype)
            with torch.device(device):
                module = getattr(diffusers, self.kind)(**self.config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        return Denoiser(self, module, torch.device(device))


class Denoiser:
    """A model on a device, with its layers and the maps that the method collects."""

    def __init__(self, model: Model, module: nn.Module, device: torch.device):
        self.model, self.module, self.device = model, module, device
        self.settings: SegmenterConfig = load_config(model.settings)
        family = backbone(self.settings.version)
        self.layers: list[AttentionLayer] = family.layers(module)
        self.features: dict[str, DenseFeature] = family.features(module)
        self.patch, self.latents = family.patch, (model.side, model.side)

    def plan(self) -> Plan:
        ids = [name for layer in self.layers for name in layer.maps] + list(self.features)
        wanted = {"-cross-map": self.settings.cross_layers, "-self-map": self.settings.self_layers}
        chosen = [
            tuple(name.removesuffix(suffix) for name in expand_layers(patterns, ids, suffix, self.model.title))
            for suffix, patterns in wanted.items()
        ]
        size, rules = self.settings.feat_size, (self.settings.head_method,)
        return Plan(*chosen, (size, size), rules, (self.settings.layer_method,), self.settings.ref_layer)

    def forward(self, inputs: dict[str, Any]) -> None:
        self.module(**inputs, return_dict=False)

    def inputs(self) -> dict[str, Any]:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device, dtype=self.model.dtype)

        return self.model.inputs(random)


SD15 = Model(
    "Stable Diffusion 1.5, 512 x 512",
    "UNet2DConditionModel",
    "sd15",
    {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    sd15_inputs,
    64,
    torch.float32,
    0.2e9,
    1.12,
)

SDXL = Model(
    "SDXL, 1024 x 1024",
    "UNet2DConditionModel",
    "sdxl",
    {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    sdxl_inputs,
    128,
    torch.bfloat16,
    0.5e9,
    2.0,
)

PIXART = Model(
    "PixArt-Sigma, 1024 x 1024",
    "PixArtTransformer2DModel",
    "pixart-sigma",
    {
        "sample_size": 128,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "patch_size": 2,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "use_additional_conditions": False,
        "interpolation_scale": 2,
    },
    pixart_inputs,
    128,
    torch.bfloat16,
    0.6e9,
    2.0,
)

FLUX = Model(
    "Flux, 1024 x 1024",
    "FluxTransformer2DModel",
    "flux",
    {
        "in_channels": 64,
        "patch_size": 1,
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    flux_inputs,
    128,
    torch.bfloat16,
    1.5e9,
    1.5,
)

MODELS = {"sd15": SD15, "sdxl": SDXL, "pixart-sigma": PIXART, "flux": FLUX}
