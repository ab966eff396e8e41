"""Train mini-sd from nothing on drawn scenes: pictures -> VAE -> latents -> text encoder and UNet -> a folder.

    python3 scripts/train_mini.py                  two cores: about two hours; a GPU: minutes
    python3 scripts/train_mini.py --quick          a few steps of everything, for tests

Every stage writes into --work and goes on from there when the command is run again. The finished pipeline, in 16-bit
safetensors, goes to --out (by default the folder that ships with the package).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from dataclasses import dataclass
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
from resumable_training import Trainer, batch_parts, generator_of, mixed_precision, pick_device
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
    unet_steps: int = 6000
    unet_batch: int = 32
    unet_rate: float = 1e-3
    warm_up: int = 200
    text_dropout: float = 0.1
    ema: float = 0.999
    save_every: int = 250


QUICK = Recipe(pictures=48, vae_steps=6, unet_steps=6, vae_batch=4, unet_batch=4, save_every=3)


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
