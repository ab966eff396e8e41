"""What the scaling study measures of one model's generation, and how much it measures of everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from embedded import scenes_hard
from embedded.backgrounds import LOWER, UPPER
from embedded.mini_data import HELD_OUT_SEED, draw_images, encode_images, to_unit
from embedded.mini_family import KINDS, guided, networks_of
from embedded.pen import SIZE
from embedded.resumable_training import pick_device
from make_scenes import WORLDS
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from train_mini import Latents, held_out_loss

from scaling.points import Point
from scaling.store import Store

WORDS = (*scenes_hard.OBJECTS, *UPPER, *LOWER)  # scenes' objects are among those of scenes-hard
GUIDANCE, BATCH = 4.0, 8


@dataclass(frozen=True)
class Sizes:
    """How much is measured. images: of the fresh split;  chosen_on: of the validation split;  seeds: of the noise"""

    images: int = 200
    chosen_on: int = 30
    seeds: int = 3
    timesteps: tuple[int, ...] = (50, 100, 200, 300, 400, 500)
    switched: int = 100  # images on which the switches of the protocol are turned one by one
    generated: int = 100
    steps: int = 20
    real: int = 1000
    network: int = 6000  # images of each world that the feature network is trained on


SIZES = {
    "full": Sizes(),
    "quick": Sizes(
        images=6, chosen_on=3, seeds=1, timesteps=(200, 400), switched=2, generated=4, steps=2, real=64, network=64
    ),
}


@cache
def scene(world: str, split: str, index: int) -> Any:
    return WORLDS[world].draw(WORLDS[world].splits[split], index)


def shown(drawn: Any) -> list[bool]:
    """Which of WORDS a scene shows   [22]"""
    return [word in drawn.objects or word in drawn.backgrounds for word in WORDS]


def examples(world: str, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 64, 64] in -1..1 and the words in them [n, 22]."""
    drawn = [WORLDS[world].draw(WORLDS[world].splits[split], index) for index in tqdm(indices, desc=f"{world}/{split}")]
    images = to_unit(np.stack([each.image for each in drawn]), torch.device("cpu"))
    return images, torch.tensor([shown(each) for each in drawn])


def prompt_of(world: str, index: int) -> str:
    """All that a fresh scene shows, by the classes' own names, in any order."""
    drawn = scene(world, "fresh", index)
    words = [*drawn.objects, *drawn.backgrounds]
    return ", ".join(words[i] for i in np.random.RandomState([index, 80]).permutation(len(words)))


def generate(pipe: DiffusionPipeline, prompts: Sequence[str], sizes: Sizes, title: str) -> np.ndarray:
    """One image per prompt, its first noise seeded by the prompt's number   [n, 64, 64, 3] in 0..1"""
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=title, unit="batch"):
        some = list(prompts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        arguments = guided(pipe, GUIDANCE, len(some))
        made = pipe(some, num_inference_steps=sizes.steps, generator=generators, output_type="np", **arguments).images
        images.append(reduced(made))
    return np.concatenate(images)


def reduced(images: np.ndarray) -> np.ndarray:
    """Average blocks of pixels, so that every image is 64 x 64   [n, 64k, 64k, 3] -> [n, 64, 64, 3]"""
    factor = images.shape[1] // SIZE
    return images.reshape(len(images), SIZE, factor, SIZE, factor, 3).mean((2, 4))


def measure_generation(point: Point, sizes: Sizes, network: Any, store: Store) -> dict[str, np.ndarray]:
    """By world: features [n, 64] and words seen [n, 22] of generated images, and the loss on held-out ones."""
    measure = partial(generation_now, point, sizes, network, store.folder)
    return store.arrays("generation", (sizes.generated, sizes.steps, sizes.network), measure)


def generation_now(point: Point, sizes: Sizes, network: Any, work: Path) -> dict[str, np.ndarray]:
    pipe = DiffusionPipeline.from_pretrained(point.folder, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    found: dict[str, np.ndarray] = {}
    for world in point.worlds:
        prompts = [prompt_of(world, index) for index in range(sizes.generated)]
        images = generate(pipe.to(pick_device()), prompts, sizes, f"{point.name}: images of {world}")
        save_sheet(images, work / f"{world}.png")
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
        with torch.no_grad():
            found[f"{world}/features"] = network(tensor).double().numpy()
            found[f"{world}/seen"] = network.seen(tensor).numpy()
        found[f"{world}/loss"] = np.array(validation_loss(pipe, point.kind, world, sizes, work))
    return found


def validation_loss(pipe: DiffusionPipeline, kind: str, world: str, sizes: Sizes, work: Path) -> float:
    """The denoiser's own loss on held-out images; kinds with other latents or other targets do not compare."""
    device, vae = pick_device(), pipe.vae
    images, words = draw_images(work.parent.parent / "data", {world: min(64, sizes.real)}, HELD_OUT_SEED)
    values = encode_images(work / f"held-out-{world}.npy", vae, images, device, KINDS[kind].enlarge)
    latents = Latents(values, words, vae.config.scaling_factor)
    return held_out_loss(networks_of(pipe, device), latents, device)


def save_sheet(images: np.ndarray, file: Path, columns: int = 10, rows: int = 4) -> None:
    """The first images side by side, to be looked at."""
    images = (255 * images[: columns * rows]).round().astype(np.uint8)
    blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
    grid = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    Image.fromarray(tiled(grid)).save(file)


def tiled(grid: np.ndarray) -> np.ndarray:
    """[rows, columns, h, w, 3] -> [rows * h, columns * w, 3]"""
    rows, columns, h, w, channels = grid.shape
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, channels)
