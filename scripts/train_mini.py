"""Train mini-sd from nothing on drawn scenes: pictures -> VAE -> latents -> text encoder and UNet -> a folder.

    python3 scripts/train_mini.py                  two cores: about two hours; a GPU: minutes
    python3 scripts/train_mini.py --quick          a few steps of everything, for tests

Every stage writes into --work and goes on from there when the command is run again. The finished pipeline, in 16-bit
safetensors, goes to --out (by default the folder that ships with the package).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from mini_model import (
    LATENT_CHANNELS,
    LATENT_SIDE,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    text_states,
)
from safetensors import safe_open
from safetensors.torch import save_file
from scene_drawing import OBJECTS, PARTS, SIZE, draw_scene
from torch import Tensor, nn
from tqdm import tqdm

DATA_SEED = 2026  # the training pictures; the other splits have seeds of their own (make_scenes.py)
SHIPPED = Path(__file__).resolve().parents[1] / "src-main/goca/embedded/mini-sd"


@dataclass(frozen=True)
class Recipe:
    pictures: int = 40_000
    vae_steps: int = 5200
    vae_batch: int = 8
    vae_rate: float = 2e-3
    kl_weight: float = 5e-7
    unet_steps: int = 7000
    unet_batch: int = 32
    unet_rate: float = 1e-3
    warm_up: int = 200
    text_dropout: float = 0.1
    ema: float = 0.999
    save_every: int = 250


QUICK = Recipe(pictures=48, vae_steps=6, unet_steps=6, vae_batch=4, unet_batch=4, save_every=3)


# --- the machine -----------------------------------------------------------------------------------------------------


def pick_device() -> torch.device:
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


def mixed_precision(device: torch.device):
    """bfloat16 where the chip multiplies it natively (accelerators, AMX); float32 elsewhere."""
    native = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


def batch_parts(size: int, device: torch.device) -> list[slice]:
    """On a CPU a batch is shared out over threads, one per core, which meet once per step, not at every operation."""
    parts = min(os.cpu_count() or 1, size) if device.type == "cpu" else 1
    edges = [size * i // parts for i in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


# --- pictures ----------------------------------------------------------------------------------------------------


def draw_pictures(work: Path, recipe: Recipe) -> tuple[np.ndarray, list[dict]]:
    """All training pictures [N, SIZE, SIZE, 3] uint8 (memory-mapped) and their words."""
    pixels, words = work / "pictures.npy", work / "words.json"
    if not (pixels.exists() and words.exists()):
        array = np.empty((recipe.pictures, SIZE, SIZE, 3), np.uint8)
        entries = []
        for i in tqdm(range(recipe.pictures), desc="drawing", unit="picture"):
            scene = draw_scene(DATA_SEED, i)
            array[i] = scene.picture
            entries.append({"objects": scene.objects, "backgrounds": scene.backgrounds})
        np.save(work / "pictures.part.npy", array)
        (work / "pictures.part.npy").rename(pixels)
        (work / "words.part").write_text(json.dumps(entries))
        (work / "words.part").rename(words)
    return np.load(pixels, mmap_mode="r"), json.loads(words.read_text())


def training_caption(words: dict, random: np.random.Generator) -> str:
    """The nouns shuffled, some parts named, half of the captions without commas."""
    objects = [[w, *(PARTS.get(w, ()) if random.random() < 0.2 and len(words["objects"]) < 3 else ())]
               for w in words["objects"]]  # fmt: skip
    groups = [*objects, *([b] for b in words["backgrounds"])]
    random.shuffle(groups)
    return random.choice([", ", " "]).join(word for group in groups for word in group)


def to_unit(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in -1..1."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


# --- training that can be stopped at any moment ----------------------------------------------------------------------


class Trainer:
    """AdamW with warm-up and cosine decay, moving average, and one safetensors file that holds all of it."""

    def __init__(self, name: str, modules: dict[str, nn.Module], work: Path, steps: int, rate: float, recipe: Recipe):
        self.name, self.modules, self.steps, self.rate, self.recipe = name, modules, steps, rate, recipe
        self.file, self.log = work / f"{name}.safetensors", work / f"{name}.jsonl"
        self.parameters = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        weights = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(weights, rate, (0.9, 0.99), weight_decay=0.01, fused=True)
        self.step = self.resume()

    def resume(self) -> int:
        if not self.file.exists():
            return 0
        with safe_open(self.file, "pt") as saved:
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
            step = int(saved.metadata()["step"])
        state = {}
        for i, (name, parameter) in enumerate(self.parameters.items()):
            parameter.data.copy_(tensors[f"weight/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
            state[i] = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return step

    def save(self) -> None:
        tensors = {f"weight/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"average/{n}": a for n, a in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[parameter].items()}
        part = self.file.with_suffix(".part")
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, metadata={"step": str(self.step)})
        part.rename(self.file)

    def run(self, loss_at: Callable[[int, slice], Tensor], parts: list[slice]) -> None:
        """`loss_at(step, part)` is the loss of a part of a step's batch, drawn from nothing but the step's number."""
        weights, size = list(self.parameters.values()), parts[-1].stop

        def gradients(part: slice) -> tuple[float, list[Tensor]]:
            loss = loss_at(self.step, part) * ((part.stop - part.start) / size)
            return loss.item(), list(torch.autograd.grad(loss, weights))

        pool = ThreadPoolExecutor(len(parts))
        if len(parts) > 1:
            torch.set_num_threads(1)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step")
        while self.step < self.steps:
            fraction = self.step / self.steps
            decay = 0.5 * (1 + math.cos(math.pi * fraction))
            self.optimizer.param_groups[0]["lr"] = self.rate * min(1, (self.step + 1) / self.recipe.warm_up) * decay
            losses, shares = zip(*pool.map(gradients, parts))
            loss = sum(losses)
            for weight, *grads in zip(weights, *shares):
                weight.grad = torch.stack(grads).sum(0) if len(grads) > 1 else grads[0]
            nn.utils.clip_grad_norm_(weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            keep = min(self.recipe.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self.average.values()), [p.data for p in self.parameters.values()], 1 - keep)
            bar.update()
            if self.step % 10 == 0 or self.step == self.steps:
                bar.set_postfix(loss=f"{loss:.4f}")
                entry = {"step": self.step, "loss": round(loss, 5), "time": round(time.time(), 1)}
                with self.log.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
            if self.step % self.recipe.save_every == 0 or self.step == self.steps:
                self.save()
        bar.close()

    def use_average(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.average[name])


def generator_of(step: int, part: slice, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(7919 * step + 31 * part.start + 1)


# --- the three stages --------------------------------------------------------------------------------------------


def train_vae(work: Path, recipe: Recipe, pictures: np.ndarray, device: torch.device):
    torch.manual_seed(1)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    trainer = Trainer("vae", {"vae": vae}, work, recipe.vae_steps, recipe.vae_rate, recipe)

    def loss_at(step: int, part: slice) -> Tensor:
        picked = np.random.default_rng((2, step)).integers(0, len(pictures), recipe.vae_batch)[part]
        images = to_unit(pictures[np.sort(picked)], device)
        with mixed_precision(device):
            posterior = vae.encode(images).latent_dist
            restored = vae.decode(posterior.sample(generator_of(step, part, device))).sample
        return (restored.float() - images).pow(2).mean() + recipe.kl_weight * posterior.kl().mean()

    trainer.run(loss_at, batch_parts(recipe.vae_batch, device))
    trainer.use_average()
    return vae.eval()


@torch.no_grad()
def encode_pictures(work: Path, vae, pictures: np.ndarray, device: torch.device) -> tuple[np.ndarray, float]:
    """Latents [2N, c, h, w] float16 of every picture and its mirror image, and the scale to unit variance."""
    file = work / "latents.npy"
    if not file.exists():
        latents = np.empty((2 * len(pictures), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE), np.float16)
        for i in tqdm(range(0, len(pictures), 64), desc="encoding", unit="batch"):
            images = to_unit(pictures[i : i + 64], device)
            for mirrored, batch in enumerate((images, images.flip(-1))):
                with mixed_precision(device):
                    mean = vae.encode(batch).latent_dist.mean
                start = mirrored * len(pictures) + i
                latents[start : start + len(images)] = mean.float().cpu().numpy()
        np.save(work / "latents.part.npy", latents)
        (work / "latents.part.npy").rename(file)
    latents = np.load(file, mmap_mode="r")
    return latents, 1 / float(np.asarray(latents[:2000], np.float32).std())


def train_unet(work: Path, recipe: Recipe, latents: np.ndarray, scale: float, words: list[dict], device: torch.device):
    torch.manual_seed(3)
    tokenizer = build_tokenizer(work / "tokenizer")
    text, unet = build_text_encoder(tokenizer).to(device), build_unet().to(device, memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # on a CPU the fused attention's backward in bfloat16 is slow
    scheduler = build_scheduler()
    levels = scheduler.alphas_cumprod.to(device)
    trainer = Trainer("unet", {"text_encoder": text, "unet": unet}, work, recipe.unet_steps, recipe.unet_rate, recipe)

    def loss_at(step: int, part: slice) -> Tensor:
        random = np.random.default_rng((4, step, part.start))
        picked = np.sort(random.integers(0, len(latents), part.stop - part.start))
        captions = ["" if random.random() < recipe.text_dropout else training_caption(words[i % len(words)], random)
                    for i in picked]  # fmt: skip
        clean = torch.from_numpy(latents[picked].astype(np.float32)).to(device) * scale
        generator = generator_of(step, part, device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        t = torch.randint(0, 1000, (len(picked),), generator=generator, device=device)
        signal, sigma = (level.sqrt()[:, None, None, None] for level in (levels[t], 1 - levels[t]))
        noised = (signal * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        with mixed_precision(device):
            velocity = unet(noised, t, text_states(text, tokenizer, captions)).sample
        return (velocity.float() - (signal * noise - sigma * clean)).pow(2).mean()

    trainer.run(loss_at, batch_parts(recipe.unet_batch, device))
    trainer.use_average()
    return tokenizer, text.eval(), unet.eval(), scheduler


def export(out: Path, vae, tokenizer, text, unet, scheduler, scale: float) -> StableDiffusionPipeline:
    """The pipeline folder, in 16-bit, written beside `out` and put in its place when whole."""
    vae.register_to_config(scaling_factor=scale)
    unet.set_default_attn_processor()
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16)  # fmt: skip
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.save_pretrained(part, safe_serialization=True)
    for extra in (p for p in (out.iterdir() if out.exists() else ()) if p.name in ("README.md", "card")):
        shutil.move(extra, part / extra.name)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/mini-sd"), help="checkpoints, caches, loss curves")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where the finished pipeline goes")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--steps", type=int, help="UNet steps, instead of the recipe's")
    arguments = parser.parse_args()
    recipe = QUICK if arguments.quick else Recipe()
    if arguments.steps:
        recipe = Recipe(**{**recipe.__dict__, "unet_steps": arguments.steps})
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    pictures, words = draw_pictures(arguments.work, recipe)
    vae = train_vae(arguments.work, recipe, pictures, device)
    latents, scale = encode_pictures(arguments.work, vae, pictures, device)
    parts = train_unet(arguments.work, recipe, latents, scale, words, device)
    export(arguments.out, vae.cpu(), *(p.cpu() if isinstance(p, nn.Module) else p for p in parts), scale)
    print(f"{OBJECTS[0]} to {OBJECTS[-1]}: done on {device.type} ({platform.machine()}); pipeline in {arguments.out}")


if __name__ == "__main__":
    main()
