"""`FeatureExtractor`: attention maps and activations of one forward pass of the denoiser."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_feature.attention import Attention
from diffusion_feature.backbone import DenseFeature
from diffusion_feature.chat import PromptReader
from diffusion_feature.devices import device_of
from diffusion_feature.errors import ExtractorError, NoiseError, PromptCut, WrongFamily, layer_not_found, naming
from diffusion_feature.families import backbone
from diffusion_feature.latents import preprocess, seeded
from diffusion_feature.loading import load_parts
from diffusion_feature.modules import as_for_inference
from diffusion_feature.patterns import expand_layers
from diffusion_feature.reading import refuse_inputs
from diffusion_feature.tap import AttentionTap, Consumer
from diffusion_feature.text_cache import TextCache

ImageLike = Any  # accepted by `read_image`
# names of projections by which an attention module is recognised
PROJECTIONS = (("to_q", "to_k"), ("to_query", "to_key"), ("to_qkv",), ("to_qkv_mlp_proj",))


class FeatureExtractor:
    """Features of a text-to-image diffusion model, by layer id.

    layer      layer ids or patterns that `extract` returns (`layer_ids()` lists all), or a mapping {id: wanted}
    version    the family: a key of `diffusion_feature.families.VERSIONS`, e.g. "1-5"
    img_size   side, or (height, width), to which images are resized
    pipeline   a diffusers pipeline object, a folder or a hub id; an object is never changed: if device, dtype or
               offload require other components, they are copied
    offload    "model", "sequential": weights stay on the CPU (see `devices.offload`); None: all on the device
    int8_text  T5 in 8 bit, with bitsandbytes (only for a folder or hub id)
    variant    the variant of weight files: "auto", None (the plain files) or a name such as "fp16"
    denoiser   another folder or hub id, whose denoiser replaces the pipeline's
    vae_dtype  dtype of the VAE; "auto": the same as dtype, but float32 if its config sets `force_upcast`
    errors     VersionNotKnown, PipelineNotFound, PartMissing, WrongFamily, LayerNotFound
    """

    def __init__(
        self,
        layer: str | Iterable[str] | Mapping[str, bool] = (),
        version: str = "1-5",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        img_size: int | tuple[int, int] = 512,
        pipeline: Any = None,
        offload: str | None = None,
        int8_text: bool = False,
        variant: str | None = "auto",
        denoiser: str | None = None,
        vae_dtype: str | torch.dtype = "auto",
    ):
        if pipeline is None:
            raise ExtractorError("no pipeline: give a diffusers pipeline object, a folder or a hub id")
        self.backbone, self.version, self.img_size = backbone(version), version, img_size
        files: dict[str, Any] = {"variant": variant, "denoiser": denoiser, "vae_dtype": vae_dtype}
        self.parts = load_parts(pipeline, self.backbone, device, dtype, offload, int8_text, **files)
        refuse_inputs(self.parts, self.backbone)
        with naming(self.where):
            self.layers = self.backbone.layers(self.denoiser)
            self.features = self.backbone.features(self.denoiser)
        self._paths = {id(module): path for path, module in self.denoiser.named_modules()}
        refuse_unnamed(self.denoiser, [layer.module for layer in self.layers], self.backbone.left_alone)
        self.texts = TextCache(self.backbone.denoiser)
        wanted = [name for name, on in layer.items() if on] if isinstance(layer, Mapping) else layer
        self.wanted = expand_layers(wanted, self.layer_ids(), "-map", self.where)

    @property
    def denoiser(self) -> nn.Module:
        return self.parts[self.backbone.denoiser]

    @property
    def device(self) -> torch.device:
        return device_of(self.denoiser)

    @property
    def where(self) -> str:
        return type(self.denoiser).__name__

    def layer_ids(self) -> list[str]:
        """Every layer id: attention maps in the order of the model's blocks, then dense features."""
        return [name for layer in self.layers for name in layer.maps] + list(self.features)

    def text_length(self, prompt: str) -> int | None:
        """The number of text tokens that the denoiser gets for a prompt; None: the same for every prompt.

        Prompts of different lengths cannot share a forward pass.
        """
        reader = self.backbone.tokenizers(self.parts)["tokenizer"]
        return reader.count(prompt) if isinstance(reader, PromptReader) and not reader.template.fixed else None

    @torch.no_grad()
    def extract(
        self,
        prompt: str | Sequence[str],
        image: ImageLike | Sequence[ImageLike],
        t: int = 100,
        noise: Tensor | None = None,
        seed: int | None = 0,
        batch_size: int = 1,
        **rules: Any,
    ) -> dict[str, Tensor]:
        """Extract the wanted layers of one image, or of several.

        prompt      a prompt, or one per image
        image       an image in any form that `read_image` accepts (a file name, a PIL image, an array, a tensor), or a
                    list of images
        noise       the noise to add, in the shape of the latents; None: drawn on the CPU from `seed` (None: at random),
                    the same for every image
        batch_size  images per forward pass; in some families their prompts must have the same number of tokens
        rules       noise_rule="nominal" | "pipeline", posterior="mean" | "sample", palette_resize="rgb" | "nearest"
        returns     layer id -> maps [B, H, S, S or N] in float32, dense features [B, C, h, w], text features [B, N, C]
                    (a bfloat16 model's in float32, since numpy has no bfloat16); B images, all on the model's device
        errors      ExtractorError if there are not as many prompts as images
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images) or not images:
            counts = f"{len(images)} images and {len(prompts)} prompts"
            raise ExtractorError(f"{counts}; expected one prompt per image, or one for all")
        noises = [noise] * len(images) if noise is None or len(noise) != len(images) else list(noise.split(1))
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            store = FeatureStore(self.wanted)
            self.forward(prompts[part], images[part], store, t, noises[part], [seed] * len(images[part]), **rules)
            found.append(store.found)
        return found[0] if len(found) == 1 else {name: torch.cat([each[name] for each in found]) for name in found[0]}

    @torch.no_grad()
    def forward(
        self,
        prompts: Sequence[str],
        images: Sequence[ImageLike],
        consumer: Consumer,
        t: int = 100,
        noise: Tensor | Sequence[Tensor | None] | None = None,
        seeds: Sequence[int | None] = (0,),
        noise_rule: str = "nominal",
        posterior: str = "mean",
        places: Sequence[int] | None = None,
        palette_resize: str = "rgb",
    ) -> Tensor:
        """Encode, add noise and run the denoiser once; the consumer receives attentions and features during the pass.

        noise      [B, c, h, w], or a sequence of [1, c, h, w] or None; None: drawn by one generator per image, seeded
                   by `seeds` (posterior="sample" draws from it first)
        places     index of each prompt's image, if images have several prompts: each image is encoded, and its noise
                   drawn, only once; None: one prompt per image
        returns    the denoiser's output   [B, c, h, w]
        warns      PromptCut if a prompt is truncated
        """
        with as_for_inference(self.parts):
            with naming("text encoder or tokenizer", ValueError):
                conditioning = self.texts(self.backbone.encode_text, self.parts, list(prompts))
            for number, cut in enumerate(conditioning.cut):
                if cut:
                    warnings.warn(PromptCut(prompts[number], cut, conditioning.length, number), stacklevel=3)
            generators = [seeded(seed) for seed in seeds]
            latents = self.encode_images(images, posterior, generators, palette_resize)
            noise = [None] * len(latents) if noise is None else noise.split(1) if isinstance(noise, Tensor) else noise
            drawn = torch.cat([draw(x[None], *each) for x, *each in zip(latents, noise, generators, strict=True)])
            with naming("scheduler"):
                level = self.backbone.noise_level(self.parts["scheduler"], t, noise_rule, side(latents))
            noised = level.signal * latents + level.noise * drawn
            noised = noised if places is None else noised[list(places)]
            with self.tap(consumer, side(latents)), naming(self.where):
                return self.backbone.denoise(self.parts, noised, level, conditioning)

    def encode_images(
        self,
        images: Sequence[ImageLike],
        posterior: str,
        generators: Sequence[torch.Generator],
        palette_resize: str = "rgb",
    ) -> Tensor:
        """Encode images to latents, in float32 on the denoiser's device   [B, c, h, w]"""
        pixels = (preprocess(image, self.img_size, palette_resize)[None] for image in images)
        with naming("VAE"):
            latents = [
                self.backbone.encode_image(self.parts, each, posterior, generator)
                for each, generator in zip(pixels, generators, strict=True)
            ]
        return torch.cat(latents).to(self.device)

    def tap(self, consumer: Consumer, latents: tuple[int, int], beside: int = 0) -> AttentionTap:
        """A context in which one call of the denoiser, on latents of (h, w), feeds the consumer.

        beside  as in `AttentionTap`
        """
        if unknown := [name for name in consumer.features if name not in self.features]:
            raise layer_not_found(unknown[0], self.features, self.where)
        features = self._current_features(consumer.features)
        return AttentionTap(self.layers, features, consumer, latents, self.backbone.patch, beside, self.backbone.remedy)

    def _current_features(self, wanted: Iterable[str]) -> Mapping[str, DenseFeature]:
        """Features by id, with the modules currently in the denoiser: an adapter replaces its module."""
        modules = [self.features[name].module for name in wanted]
        try:
            found = [self.denoiser.get_submodule(self._paths[id(module)]) for module in modules]
        except (AttributeError, KeyError):
            found = []
        same = all(now is then for now, then in zip(found, modules, strict=False)) and len(found) == len(modules)
        return self.features if same else self.backbone.features(self.denoiser)


class FeatureStore:
    """A consumer that stores the wanted layers."""

    def __init__(self, wanted: Iterable[str]):
        self.wanted = set(wanted)
        self.features = sorted(name for name in self.wanted if not name.endswith("-map"))
        self.found: dict[str, Tensor] = {}

    def attention(self, attention: Attention) -> None:
        for name in self.wanted.intersection(attention.layer.maps):
            self.found[name] = attention.map(name.rsplit("-", 2)[1])

    def feature(self, layer: str, feature: Tensor) -> None:
        self.found[layer] = feature.float() if feature.dtype == torch.bfloat16 else feature


def draw(latents: Tensor, noise: Tensor | None, generator: torch.Generator) -> Tensor:
    """Noise for one image's latents [1, c, h, w]: as given, or drawn on the CPU."""
    if noise is None:
        noise = torch.randn(latents.shape, generator=generator)
    elif noise.shape != latents.shape:
        raise NoiseError(f"noise is {tuple(noise.shape)}, the latents are {tuple(latents.shape)}")
    elif not bool(noise.isfinite().all()):
        raise NoiseError("the given noise contains NaN or infinity; expected finite numbers in the latents' shape")
    return noise.to(latents)


def side(latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2], latents.shape[-1]


def refuse_unnamed(denoiser: nn.Module, named: Sequence[nn.Module], left_alone: Sequence[str] = ()) -> None:
    """Refuse a denoiser with attention modules that have no layer id and would be missed.

    left_alone   paths (fnmatch patterns) of modules without image maps, such as text refiners
    """
    known = set(map(id, named))
    for path, module in denoiser.named_modules():
        if is_attention(module) and id(module) not in known and not any(fnmatch(path, each) for each in left_alone):
            raise WrongFamily(
                f"{type(denoiser).__name__}.{path} is an attention module without a layer id in this family"
            )


def is_attention(module: nn.Module) -> bool:
    return any(all(hasattr(module, name) for name in names) for names in PROJECTIONS)
