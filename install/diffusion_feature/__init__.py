"""The feature extractor: any diffusers text-to-image pipeline in, attention and activations of one forward pass out.

Names are looked up when they are first used, so that `diffusion_feature.images` loads without the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffusion_feature.renamed import warn_renamed

if TYPE_CHECKING:  # for type checkers, which do not run __getattr__
    from diffusion_feature.attention import Attention
    from diffusion_feature.backbone import AttentionLayer, Backbone, DenseFeature
    from diffusion_feature.errors import (
        AttentionNotSeen,
        DeviceNotFound,
        ExtractorError,
        LayerNotFound,
        ModelFailed,
        NoiseError,
        PartMissing,
        PipelineNotFound,
        PromptCut,
        VersionNotKnown,
        VersionTaken,
        WrongFamily,
    )
    from diffusion_feature.extractor import FeatureExtractor
    from diffusion_feature.families import register
    from diffusion_feature.images import ImageError, ImageUnreadable, read_image
    from diffusion_feature.patterns import expand_layers
    from diffusion_feature.tap import AttentionTap, Consumer

_HOME = {
    "Attention": "attention",
    "AttentionLayer": "backbone",
    "AttentionNotSeen": "errors",
    "AttentionTap": "tap",
    "Backbone": "backbone",
    "Consumer": "tap",
    "DenseFeature": "backbone",
    "DeviceNotFound": "errors",
    "ExtractorError": "errors",
    "FeatureExtractor": "extractor",
    "ImageError": "images",
    "ImageUnreadable": "images",
    "LayerNotFound": "errors",
    "ModelFailed": "errors",
    "NoiseError": "errors",
    "PartMissing": "errors",
    "PipelineNotFound": "errors",
    "PromptCut": "errors",
    "VersionNotKnown": "errors",
    "VersionTaken": "errors",
    "WrongFamily": "errors",
    "expand_layers": "patterns",
    "read_image": "images",
    "register": "families",
}
_FORMER = {"PictureUnreadable": "ImageUnreadable"}
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
    "ImageError",
    "ImageUnreadable",
    "LayerNotFound",
    "ModelFailed",
    "NoiseError",
    "PartMissing",
    "PipelineNotFound",
    "PromptCut",
    "VersionNotKnown",
    "VersionTaken",
    "WrongFamily",
    "expand_layers",
    "read_image",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warn_renamed(name, _FORMER[name])
        name = _FORMER[name]
    if name not in _HOME:
        raise AttributeError(f"diffusion_feature has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"diffusion_feature.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
