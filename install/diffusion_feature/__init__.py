"""The feature extractor: any diffusers text-to-image pipeline in, attention and activations of one forward pass out."""

from diffusion_feature.attention import Attention
from diffusion_feature.backbone import AttentionLayer, Backbone, DenseFeature
from diffusion_feature.errors import (
    AttentionNotSeen,
    DeviceNotFound,
    ExtractorError,
    LayerNotFound,
    PartMissing,
    PipelineNotFound,
    PromptCut,
    VersionNotKnown,
    VersionTaken,
    WrongFamily,
)
from diffusion_feature.extractor import FeatureExtractor
from diffusion_feature.families import register
from diffusion_feature.patterns import expand_layers
from diffusion_feature.tap import AttentionTap, Consumer

__all__ = [
    "Attention",
    "AttentionLayer",
    "AttentionNotSeen",
    "AttentionTap",
    "Backbone",
    "Consumer",
    "DenseFeature",
    "DeviceNotFound",
    "ExtractorError",
    "FeatureExtractor",
    "LayerNotFound",
    "PartMissing",
    "PipelineNotFound",
    "PromptCut",
    "VersionNotKnown",
    "VersionTaken",
    "WrongFamily",
    "expand_layers",
    "register",
]
