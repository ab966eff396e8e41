"""HunyuanImage 2.1: double-stream blocks, then single-stream blocks, over [image, text]; latents of 1/32."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.backbone import AttentionLayer, Backbone, Conditioning, DenseFeature, NoiseLevel, Parts
from diffusion_feature.calls import Call, CallNotUnderstood, by_signature
from diffusion_feature.chat import PromptReader, Template, between, hidden_states, language_states
from diffusion_feature.devices import like
from diffusion_feature.families.flux import first_columns, single_blocks, stream_layers
from diffusion_feature.families.joint import joint_features
from diffusion_feature.families.qwenimage import BEFORE
from diffusion_feature.latents import vae_latents
from diffusion_feature.noise import rectified_flow

LAYOUT = "image-first"
LETTERS = 128  # tokens of ByT5, which reads what stands between quotation marks
TEMPLATE = Template(between(BEFORE, "<|im_end|>"), length=1000, drop=34, fixed=True, left=False)
QUOTED = (
    "text in quotation marks is encoded by ByT5 and put before the other words, so their tokens are not where the "
    "tokenizer put them; leave the quotation marks out"
)


def hunyuan_layers(transformer: Any) -> list[AttentionLayer]:
    return stream_layers(transformer, LAYOUT, first_columns)


def hunyuan_features(transformer: Any) -> dict[str, DenseFeature]:
    features = joint_features(transformer.transformer_blocks, part=0)
    for name, block in single_blocks(transformer):
        for letter in "qkv":
            features[f"{name}-self-{letter}"] = DenseFeature(getattr(block.attn, f"to_{letter}"), LAYOUT)
        features[f"{name}-attn-out"] = DenseFeature(block.attn)  # (image, text), before the output projection
        features[f"{name}-out"] = DenseFeature(block)
    return features


def encode_qwen(parts: Parts, prompts: list[str]) -> Conditioning:
    """Qwen2.5-VL's states [B, 1000, c] and their mask; of ByT5 none, since nothing is quoted [B, 128, c']

    The denoiser puts padding after all words, so that the prompt's tokens come first.
    """
    from diffusers.pipelines.hunyuan_image.pipeline_hunyuanimage import extract_glyph_text  # seconds to import

    if any(map(extract_glyph_text, prompts)):
        raise CallNotUnderstood(QUOTED)
    reader, weight, count = PromptReader(parts["tokenizer"], TEMPLATE), like(parts["transformer"]), len(prompts)
    states, mask, cut = language_states(reader, parts["text_encoder"], prompts, hidden_states(-3))
    arguments = {
        "encoder_hidden_states": states.to(weight),
        "encoder_attention_mask": mask.to(weight.device),
        "encoder_hidden_states_2": weight.new_zeros(count, LETTERS, parts["transformer"].config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.zeros(count, LETTERS, dtype=torch.int64, device=weight.device),
    }
    return Conditioning(arguments, TEMPLATE.length + LETTERS, cut)


def denoise(parts: Parts, latents: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
    transformer = parts["transformer"]
    weight = like(transformer)
    timestep = torch.full((len(latents),), float(level.timestep)).to(weight)
    return transformer(latents.to(weight), timestep=timestep, return_dict=False, **conditioning.arguments)[0]


def call(given: Mapping[str, Any], patch: int) -> Call:
    letters = given.get("encoder_attention_mask_2")
    if letters is not None and bool(letters.any()):
        raise CallNotUnderstood(QUOTED)
    return by_signature(given, patch)


def accepts(transformer: nn.Module) -> bool:
    """Not the distilled models, conditioned on the next timestep or a guidance scale, nor the refiner."""
    config: Any = transformer.config
    plain = not (config.use_meanflow or config.guidance_embeds)
    return plain and list(config.patch_size) == [1, 1] and config.text_embed_2_dim is not None


HUNYUAN_IMAGE = Backbone(
    name="HunyuanImage 2.1 transformer",
    denoiser="transformer",
    kind="HunyuanImageTransformer2DModel",
    parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    prompt=(("tokenizer", TEMPLATE.length),),
    template=TEMPLATE,
    layers=hunyuan_layers,
    features=hunyuan_features,
    encode_text=encode_qwen,
    encode_image=vae_latents,
    noise_level=partial(rectified_flow, steps=50, spaced=True),
    denoise=denoise,
    processor="diffusers.models.transformers.transformer_hunyuanimage.HunyuanImageAttnProcessor",
    accepts=accepts,
    left_alone=("context_embedder.*",),
    call=call,
    half=torch.bfloat16,
)
