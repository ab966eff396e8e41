"""Train one of the small models from nothing: drawn images -> VAE -> latents -> text encoder and denoiser -> a folder.

    python3 scripts/train_mini.py                       mini-sd; two cores: about two hours; a GPU: minutes
    python3 scripts/train_mini.py --kind mini-pixart    another kind of the family (mini_family.KINDS)
    python3 scripts/train_mini.py --quick               a few steps of everything, for tests
    python3 scripts/train_mini.py --kind ... --export   no training: folders of the checkpoints that there are

Every stage writes into --work and goes on from there when the command is run again. The finished pipeline, in 16-bit
safetensors, goes to --out; the averaged weights of earlier steps (MARKS) become folders in --work.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from embedded.mini_data import (
    HELD_OUT_SEED,
    EncodedOnDemand,
    Words,
    draw_images,
    encode_images,
    to_unit,
    training_caption,
)
from embedded.mini_family import KINDS, Kind, Networks
from embedded.resumable_training import (
    Trainer,
    batch_parts,
    generator_of,
    mixed_in_16_bit,
    mixed_precision,
    pick_device,
)
from goca.embedded import resolve
from torch import Tensor

SHIPPED = Path(__file__).resolve().parents[1] / "src-main/goca/embedded"
# name -> share of the steps, up to where the rate first falls to zero, after which the averaged weights are kept; those
# there are "annealed" if the training goes on, and the last are "late"
MARKS = {"first": 0.025, "early": 0.1, "middle": 1 / 3, "advanced": 2 / 3}


@dataclass(frozen=True)
class Recipe:
    vae_steps: int = 5200
    vae_batch: int = 8
    vae_rate: float = 2e-3
    kl_weight: float = 5e-7
    steps: int = 6000
    batch: int = 32
    rate: float = 1e-3
    warm_up: int = 200
    decay: str = "cosine"
    annealed: float = 0.0  # share of the steps after which the rate has fallen to zero once, and starts anew
    halved: float = 0.0  # share of the steps that see images of half the side
    text_dropout: float = 0.1
    ema: float = 0.999
    save_every: int = 250
    held_out: int = 64  # images of each world for the validation loss


RECIPES = {
    "mini-sd": Recipe(),
    "mini-sd-small": Recipe(decay="late linear"),
    "mini-pixart": Recipe(steps=3200, decay="late linear", warm_up=400, halved=7 / 8),
    "mini-flux": Recipe(steps=5200, decay="late linear", annealed=0.5, warm_up=400, halved=7 / 8),
}
QUICK = {"vae_steps": 6, "steps": 6, "vae_batch": 4, "batch": 4, "save_every": 3, "held_out": 4}
QUICK_IMAGES = 48


# --- the three stages --------------------------------------------------------------------------------------------


def train_vae(work: Path, recipe: Recipe, build: Callable[[], AutoencoderKL], images: np.ndarray, device: torch.device):
    torch.manual_seed(1)
    vae = build().to(device, memory_format=torch.channels_last)
    trainer = Trainer("vae", {"vae": vae}, work, recipe.vae_steps, recipe.vae_rate, recipe)

    def loss_at(step: int, part: slice) -> Tensor:
        picked = np.random.default_rng((2, step)).integers(0, len(images), recipe.vae_batch)[part]
        batch = to_unit(images[np.sort(picked)], device)
        with mixed_precision(device):
            posterior = vae.encode(batch).latent_dist
            restored = vae.decode(posterior.sample(generator_of(step, part, device))).sample
        return (restored.float() - batch).pow(2).mean() + recipe.kl_weight * posterior.kl().mean()

    trainer.run(loss_at, batch_parts(recipe.vae_batch, device))
    trainer.use_average()
    return vae.eval()


@dataclass(frozen=True)
class Latents:
    """Latents [2N, c, h, w] of N images and their mirror images, the words of the N, and the scale of latents."""

    values: np.ndarray | EncodedOnDemand
    words: Sequence[Words]
    scale: float

    def batch(self, picked: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(self.values[picked].astype(np.float32)).to(device) * self.scale

    def caption(self, index: int, random: np.random.Generator) -> str:
        return training_caption(self.words[index % len(self.words)], random)


@dataclass(frozen=True)
class Data:
    """Latents of whole images, of halved ones (if no step sees those: the whole ones), of held-out ones."""

    whole: Latents
    halved: Latents
    held_out: Latents


def prepare(kind: Kind, recipe: Recipe, work: Path, data: Path, device: torch.device) -> tuple[AutoencoderKL, Data]:
    """The VAE and what it makes of the images; whatever is there already is read."""
    images, words = draw_images(data, kind.worlds)
    held_out, held_words = draw_images(data, dict.fromkeys(kind.worlds, recipe.held_out), HELD_OUT_SEED)
    if isinstance(kind.vae, str):
        vae = AutoencoderKL.from_pretrained(resolve(kind.vae), subfolder="vae", dtype=torch.float32)
        caches = data / kind.vae.replace(":", "-")
    else:
        vae, caches = train_vae(work, recipe, kind.vae, images, device), work
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    name = "-".join(f"{world}{count}" for world, count in kind.worlds.items())

    def encoded(what: str, pixels: np.ndarray, enlarge: float) -> np.ndarray:
        size = f"-x{enlarge:g}" if enlarge != 1 else ""
        return encode_images(caches / f"{what}-{name}{size}.npy", vae, pixels, device, enlarge)

    if kind.enlarge > 1:  # kept, these would fill gigabytes
        values: np.ndarray | EncodedOnDemand = EncodedOnDemand(vae, images, device, kind.enlarge)
    else:
        values = encoded("latents", images, kind.enlarge)
    halved = encoded("latents", images, kind.enlarge / 2) if recipe.halved else values
    held_values = encoded("held-out", held_out, kind.enlarge)
    if isinstance(kind.vae, str):
        scale = vae.config.scaling_factor
    else:
        sample = values[np.arange(0, len(values), max(1, len(values) // 2000))]
        scale = 1 / float(sample.astype(np.float32).std())
    vae.register_to_config(scaling_factor=scale, shift_factor=0.0)  # FluxPipeline adds it, so it has to be a number
    return vae, Data(
        Latents(values, words, scale),
        Latents(halved, words, scale),
        Latents(held_values, held_words, scale),
    )


@torch.no_grad()
def held_out_loss(networks: Networks, latents: Latents, device: torch.device) -> float:
    """The mean loss over the held-out images, always with the same noise, timesteps and captions."""
    total, count = 0.0, len(latents.words)
    for start in range(0, count, 32):
        picked = np.arange(start, min(start + 32, count))
        random, generator = np.random.default_rng((5, start)), torch.Generator(device).manual_seed(start)
        captions = [latents.caption(i, random) for i in picked]
        loss = task_loss(networks, latents.batch(picked, device), captions, generator, device)
        total += float(loss) * len(picked)
    return total / count


def task_loss(
    networks: Networks, clean: Tensor, captions: list[str], generator: torch.Generator, device: torch.device
) -> Tensor:
    task = networks.task(clean, generator)
    with mixed_precision(device):
        found = networks.predict(task.noised, task.t, captions)
    return ((found.float() - task.target).pow(2) * task.weight).mean()


def marks_of(recipe: Recipe) -> dict[int, str]:
    """step -> name of the averaged weights that are kept there"""
    first_end = round((recipe.annealed or 1) * recipe.steps)
    marks = {max(1, round(share * first_end)): name for name, share in MARKS.items()}
    return {**marks, first_end: "annealed"} if recipe.annealed else marks


def sees_halved(recipe: Recipe, step: int) -> bool:
    """Whether a step sees images of half the side, which cost a quarter: drawn from its number."""
    return np.random.default_rng((6, step)).random() < recipe.halved


def train_denoiser(
    work: Path, recipe: Recipe, kind: Kind, data: Data, device: torch.device, train: bool
) -> tuple[dict[str, Any], Trainer]:
    torch.manual_seed(3)
    parts = kind.parts(work)
    networks = kind.family.networks(parts, device)
    plain = kind.family.plain_attention and mixed_in_16_bit(device)
    if plain:
        parts[kind.denoiser].set_attn_processor(AttnProcessor())
    trainer = Trainer(
        kind.denoiser,
        networks.modules,
        work,
        recipe.steps,
        recipe.rate,
        recipe,
        validate=lambda: held_out_loss(networks, data.held_out, device),
        marks=marks_of(recipe),
        annealed=round(recipe.annealed * recipe.steps),
    )

    def loss_at(step: int, part: slice) -> Tensor:
        latents = data.halved if sees_halved(recipe, step) else data.whole
        random = np.random.default_rng((4, step, part.start))
        picked = np.sort(random.integers(0, len(latents.values), part.stop - part.start))
        captions = ["" if random.random() < recipe.text_dropout else latents.caption(i, random) for i in picked]
        return task_loss(networks, latents.batch(picked, device), captions, generator_of(step, part, device), device)

    if train:
        trainer.run(loss_at, batch_parts(recipe.batch, device))
    trainer.use_average()
    if plain:
        parts[kind.denoiser].set_default_attn_processor()
    return parts, trainer


def export(out: Path, pipe: DiffusionPipeline) -> None:
    """The pipeline folder, in 16-bit, written beside `out` and put in its place when whole; cards are kept."""
    pipe.to("cpu", torch.float16)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.save_pretrained(part, safe_serialization=True)
    for config in part.glob("*/config.json"):
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)  # a borrowed part remembers the folder that it was read from
        if config.parent.name.startswith("text_encoder"):
            content["dtype"] = "float32"  # transformers would load the encoder alone in 16 bit
        config.write_text(json.dumps(content, indent=2) + "\n")
    for extra in (p for p in (out.iterdir() if out.exists() else ()) if p.name in ("README.md", "card")):
        shutil.move(extra, part / extra.name)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    pipe.to("cpu", torch.float32)


def recipe_of(arguments: argparse.Namespace) -> tuple[Kind, Recipe]:
    kind, recipe = KINDS[arguments.kind], RECIPES[arguments.kind]
    if arguments.quick:
        share = QUICK_IMAGES // len(kind.worlds)
        kind, recipe = replace(kind, worlds=dict.fromkeys(kind.worlds, share)), replace(recipe, **QUICK)
    return kind, replace(recipe, steps=arguments.steps) if arguments.steps else recipe


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="mini-sd")
    parser.add_argument("--work", type=Path, help="checkpoints, caches, loss curves; by default runs/KIND")
    parser.add_argument("--data", type=Path, help="drawn images and latents; by default mini-data beside the work")
    parser.add_argument("--out", type=Path, help="where the pipeline goes; by default the folder that ships")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--steps", type=int, help="of the denoiser, instead of the recipe's")
    parser.add_argument("--export", action="store_true", help="only write folders of the checkpoints there are")
    arguments = parser.parse_args(given)
    arguments.work = arguments.work or Path("runs") / arguments.kind
    arguments.data = arguments.data or arguments.work.parent / "mini-data"
    arguments.out = arguments.out or SHIPPED / arguments.kind
    return arguments


def main() -> None:
    arguments = parse()
    kind, recipe = recipe_of(arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    vae, data = prepare(kind, recipe, arguments.work, arguments.data, device)
    train = not arguments.export
    parts, trainer = train_denoiser(arguments.work, recipe, kind, data, device, train)
    pipe = kind.family.assemble(parts, vae)
    export(arguments.out, pipe)
    for mark in marks_of(recipe).values():
        if trainer.kept(mark).exists():
            trainer.use_kept(mark)
            export(arguments.work / mark, pipe)
    where = f"{device.type} ({platform.machine()})"
    print(f"{arguments.kind}: step {trainer.step} of {recipe.steps} on {where}; pipeline in {arguments.out}")


if __name__ == "__main__":
    main()
