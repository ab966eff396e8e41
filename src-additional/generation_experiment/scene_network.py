"""A small network that detects which words a drawn scene shows, made for this experiment.

Its last pooling gives the features of `features=scenes`; its predictions measure how well an image matches its
caption. It is trained on a split that neither the embedded model nor the comparison uses.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusion_feature.images import read_image
from goca.files.atomic import whole_file
from goca.files.bounded_json import read_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

WORDS = (
    "ball",
    "star",
    "tree",
    "house",
    "car",
    "fish",
    "flower",
    "mushroom",
    "sky",
    "wall",
    "forest",
    "grass",
    "sand",
    "water",
    "road",
    "snow",
)
WIDTH, EPOCHS, BATCH, RATE = 64, 8, 32, 3e-3


class SceneNetwork(nn.Module):
    """Images [B, 3, 64, 64] in -1..1 -> features [B, 64]; `words` -> logits [B, W], one for each of W words."""

    def __init__(self, words: int = len(WORDS)) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.ReLU())
                for (a, b), stride in zip(pairwise((3, 32, WIDTH, WIDTH, WIDTH)), (2, 2, 1, 2))
            )
        )
        self.words = nn.Linear(WIDTH, words)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).amax((2, 3))  # small objects count as much as large ones

    @torch.no_grad()
    def seen(self, images: Tensor) -> Tensor:
        """Predict which words an image shows   [B, W] bool"""
        return self.words(self(images)) > 0


def in_caption(caption: str) -> list[bool]:
    """Find the words that a caption names, without parts of objects (trunk, roof, ...)   [16]"""
    named = {word.strip(" ()") for word in caption.split(",")}
    return [word in named for word in WORDS]


def read_scenes(folder: Path) -> tuple[Tensor, Tensor]:
    """A split of scripts/make_scenes.py: images [n, 3, 64, 64] in -1..1, words in them [n, 16]."""
    labels = read_json(folder / "labels.json")
    images = np.stack([np.asarray(read_image(folder / "JPEGImages" / name).image) for name in labels])
    words = torch.tensor([in_caption(entry["caption"]) for entry in labels.values()])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, words


def train(folder: Path, file: Path) -> SceneNetwork:
    """Load the network from `file`, or train it on a split and save it there."""
    return fit(lambda: read_scenes(folder), len(WORDS), file)


def fit(examples: Callable[[], tuple[Tensor, Tensor]], words: int, file: Path) -> SceneNetwork:
    """Trained on images [n, 3, 64, 64] in -1..1 and which words are in them [n, W], kept in `file`.

    examples  called only if the file is missing
    """
    torch.manual_seed(0)
    network = SceneNetwork(words)
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    images, seen = examples()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    random = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), desc="scene network", unit="step"):
        picked = torch.randint(len(images), (BATCH,), generator=random)
        batch = images[picked]
        if torch.rand((), generator=random) < 0.5:
            batch = batch.flip(3)
        loss = F.binary_cross_entropy_with_logits(network.words(network(batch)), seen[picked].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with whole_file(file) as temporary:
        save_file(network.state_dict(), temporary)
    return network.eval()


def faithfulness(seen: Any, captions: list[str]) -> dict[str, float]:
    """Measure how well detected words [n, 16] agree with the captions.

    found   share of the captions' words that are detected
    exact   share of images in which exactly the captions' words are detected
    """
    seen, named = np.asarray(seen, dtype=bool), np.array([in_caption(caption) for caption in captions])
    return {"found": float(seen[named].mean()), "exact": float((seen == named).all(1).mean())}
