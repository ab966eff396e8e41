"""Feature matrices and CLIP scores of the images in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_feature.images import ImageUnreadable, read_image
from distances import Array, Statistics
from goca.errors import GocaError
from inception import SIDE, load_inception
from PIL import Image
from scene_network import SceneNetwork
from torch import Tensor, nn
from tqdm import tqdm

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class FeaturesError(GocaError, ValueError):
    """Images, weights or statistics cannot be used; the message says why."""


def images_of(folder: str | Path, n: int | None = None) -> list[Path]:
    """The first `n` images of a folder by name; files with temporary names are unfinished and ignored."""
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < (n or 2):
        raise FeaturesError(f"{folder} has {len(files)} images; expected {n or 'at least two'}")
    return files[:n]


def read(file: Path, side: int, resize: str) -> Tensor:
    """[3, side, side] in -1..1"""
    image = read_image_of(file).resize((side, side), FILTERS[resize])
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def read_image_of(file: Path) -> Image.Image:
    """Upright, RGB. Raises FeaturesError."""
    try:
        return read_image(file).image
    except ImageUnreadable as error:
        raise FeaturesError(str(error)) from None


def chunks(files: Sequence[Path], size: int, title: str) -> Iterator[Sequence[Path]]:
    starts = range(0, len(files), size)
    return (files[start : start + size] for start in tqdm(starts, desc=title, unit="batch"))


def read_scene_network(weights: str | None) -> SceneNetwork:
    from safetensors.torch import load_file

    if weights is None:
        raise FeaturesError("features=scenes needs weights=FILE, which scenes.py writes")
    network = SceneNetwork()
    network.load_state_dict(load_file(weights))
    return network.eval()


# features -> function that loads the network, its input side
NETWORKS: Mapping[str, tuple[Callable[[Any], nn.Module], int]] = {
    "inception": (load_inception, SIDE),
    "scenes": (read_scene_network, 64),
}


@torch.no_grad()
def features_of(
    files: Sequence[Path], network: nn.Module, side: int, resize: str, batch: int, device: str | torch.device = "cpu"
) -> Array:
    """[n, d] in float64"""
    network = network.to(device)
    parts = [
        network(torch.stack([read(file, side, resize) for file in some]).to(device)).double().cpu().numpy()
        for some in chunks(files, batch, "features")
    ]
    return np.concatenate(parts)


def read_statistics(path: str | Path) -> Statistics:
    """Read an .npz with mu [d] and sigma [d, d], as pytorch-fid writes it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Statistics(file["mu"].astype(np.float64), file["sigma"].astype(np.float64))
    except (OSError, KeyError, ValueError) as error:
        raise FeaturesError(f"{path} is not an .npz with mu and sigma: {error}") from None


@torch.no_grad()
def clip_scores(files: Sequence[Path], captions: Sequence[str], model: str, batch: int, device: Any = "cpu") -> Array:
    """100 * cosine of each image and its caption   [n]; captions are truncated to the model's length"""
    from transformers import CLIPModel, CLIPProcessor

    try:
        clip, processor = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model)
    except OSError as error:
        raise FeaturesError(f"CLIP {model} cannot be read: {str(error).splitlines()[0]}") from None
    clip, scores, texts = clip.to(device).eval(), [], dict(zip(files, captions, strict=True))
    length = min(processor.tokenizer.model_max_length, clip.config.text_config.max_position_embeddings)
    for some in chunks(files, batch, "CLIP"):
        images = [read_image_of(file) for file in some]
        inputs = processor(
            text=[texts[file] for file in some],
            images=images,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=length,
        ).to(device)
        output = clip(**inputs)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds.double(), output.text_embeds.double())
        scores.append(100 * cosine.cpu().numpy())
    return np.concatenate(scores)
