"""What the family is trained on: images of both worlds with their words, captions, and cached latents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from goca.files.atomic import whole_file
from torch import Tensor
from tqdm import tqdm

from embedded import scene_drawing, scenes_hard
from embedded.pen import SIZE
from embedded.resumable_training import mixed_precision, one_thread_each
from embedded.scene_drawing import PARTS

DATA_SEED = 2026  # the training images; the other splits have seeds of their own (make_scenes.py)
HELD_OUT_SEED = 2027  # images of the validation loss

Words = Mapping[str, Any]
Counts = Mapping[str, int]  # world -> images


def scenes_caption(words: Words, random: np.random.Generator) -> str:
    """The nouns shuffled, some parts named, half of the captions without commas."""
    objects = [
        [w, *(PARTS.get(w, ()) if random.random() < 0.2 and len(words["objects"]) < 3 else ())]
        for w in words["objects"]
    ]
    groups = [*objects, *([b] for b in words["backgrounds"])]
    random.shuffle(groups)
    return random.choice([", ", " "]).join(word for group in groups for word in group)


def scenes_hard_caption(words: Words, random: np.random.Generator) -> str:
    """Any kind of caption but those that name what is not there; without brackets, half without commas."""
    kinds = {kind: share for kind, share in scenes_hard.KINDS.items() if kind != "not there"}
    state = np.random.RandomState(random.integers(2**31))
    kind = list(kinds)[scenes_hard.weighted(state, np.array(list(kinds.values())) / sum(kinds.values()))]
    caption = scenes_hard.caption_of(words, state, kind).replace("(", "").replace(")", "")
    return caption if random.random() < 0.5 else caption.replace(",", "")


def words_of(scene: Any) -> Words:
    return {"objects": scene.objects, "backgrounds": scene.backgrounds}


@dataclass(frozen=True)
class World:
    draw: Callable[[int, int], Any]  # seed, index -> scene
    words: Callable[[Any], Words]
    caption: Callable[[Words, np.random.Generator], str]


WORLDS = {
    "scenes": World(scene_drawing.draw_scene, words_of, scenes_caption),
    "scenes-hard": World(scenes_hard.draw_scene, lambda scene: scene.words, scenes_hard_caption),
}


def training_caption(words: Words, random: np.random.Generator) -> str:
    return WORLDS[words["world"]].caption(words, random)


def draw_images(data: Path, counts: Counts, seed: int = DATA_SEED) -> tuple[np.ndarray, list[Words]]:
    """Images [N, SIZE, SIZE, 3] uint8 (memory-mapped), world after world, and their words; kept in `data`."""
    name = "-".join(f"{world}{count}" for world, count in counts.items()) + f"-seed{seed}"
    pixels, words = data / f"{name}.npy", data / f"{name}.json"
    if not (pixels.exists() and words.exists()):
        data.mkdir(parents=True, exist_ok=True)
        array, entries = np.empty((sum(counts.values()), SIZE, SIZE, 3), np.uint8), []
        for world, count in counts.items():
            for index in tqdm(range(count), desc=f"drawing {world}", unit="image"):
                scene = WORLDS[world].draw(seed, index)
                array[len(entries)] = scene.image
                entries.append({"world": world, **WORLDS[world].words(scene)})
        with whole_file(pixels) as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
        with whole_file(words) as temporary:
            temporary.write_text(json.dumps(entries))
    return np.load(pixels, mmap_mode="r"), json.loads(words.read_text())


def to_unit(images: np.ndarray, device: torch.device, enlarge: float = 1) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, enlarge * H, enlarge * W] in -1..1; at 0.5 the means of 2 x 2 pixels."""
    tensor = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    if enlarge != 1:
        tensor = F.interpolate(tensor, scale_factor=enlarge, mode="bilinear", align_corners=False)
    return tensor.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def latents_of(vae: Any, pixels: Tensor) -> np.ndarray:
    """The means of the VAE's posterior, before scaling   [B, 3, H, W] in -1..1 -> [B, c, h, w] float32"""
    with mixed_precision(pixels.device):
        return vae.encode(pixels).latent_dist.mean.float().cpu().numpy()


def encode_images(file: Path, vae: Any, images: np.ndarray, device: torch.device, enlarge: float = 1) -> np.ndarray:
    """Latents [2N, c, h, w] float16 of every image, then of its mirror image; kept in `file` (memory-mapped)."""
    if not file.exists():
        vae = vae.to(device, memory_format=torch.channels_last).eval()

        def encode(start: int) -> tuple[int, list[np.ndarray]]:
            pixels = to_unit(images[start : start + 32], device, enlarge)
            return start, [latents_of(vae, each) for each in (pixels, pixels.flip(-1))]

        latents: np.ndarray | None = None
        starts = range(0, len(images), 32)
        with one_thread_each(device) as pool:
            for start, both in tqdm(pool.map(encode, starts), total=len(starts), desc="encoding", unit="batch"):
                if latents is None:
                    latents = np.empty((2 * len(images), *both[0].shape[1:]), np.float16)
                for mirrored, mean in enumerate(both):
                    first = mirrored * len(images) + start
                    latents[first : first + len(mean)] = mean
        with whole_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, latents)
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class EncodedOnDemand:
    """The same latents as `encode_images`, encoded whenever they are asked for: for kinds that use few of them."""

    vae: Any
    images: np.ndarray  # [N, H, W, 3] uint8
    device: torch.device
    enlarge: float = 1

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitem__(self, picked: np.ndarray) -> np.ndarray:
        pixels = to_unit(self.images[picked % len(self.images)], self.device, self.enlarge)
        mirrored = torch.from_numpy(picked >= len(self.images)).to(self.device)[:, None, None, None]
        return latents_of(self.vae, torch.where(mirrored, pixels.flip(-1), pixels))
