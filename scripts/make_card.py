"""The model card of mini-sd: what it was made of, loss curves, samples with guidance, and what the VAE loses.

    python3 scripts/make_card.py --work runs/mini-sd         after train_mini.py, from its logs

Writes README.md and card/*.png into the pipeline's folder. Every number in the card is measured here or read from the
training's own logs and recipe.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from goca.visualize import save_figure
from make_scenes import SPLITS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mini_model import CONTEXT, WORDS
from scene_drawing import LOWER, OBJECTS, UPPER, draw_scene
from tqdm import tqdm
from train_mini import DATA_SEED, SHIPPED, Recipe, to_unit

GUIDANCE, SAMPLING_STEPS, SAMPLES = 4.0, 30, 6

CARD = """\
# mini-sd

A text-to-image latent diffusion model of {parameters:.1f} M parameters for 64 x 64 scenes, in the folder format of
`StableDiffusionPipeline`. It ships so that the method can be tried, tested and taught without a download; it is no
model of the world.

| part | what | parameters |
|---|---|---|
{parts}

Words: {words}. Anything else is spelt in bytes and means nothing to it. Prompts are nouns in any order, with or without
commas: `ball, sky, grass`.

## How it was made

`python3 scripts/train_mini.py`, everything from random weights, on pictures that `scripts/scene_drawing.py` draws:
{pictures} pictures of data seed {seed} and their mirror images (test, validation and fresh splits have the seeds
{splits}). VAE: {vae_steps} steps of {vae_batch} pictures. Text encoder and UNet together: {unet_steps} steps of
{unet_batch} pictures, v-prediction, Stable Diffusion's scaled-linear betas, {dropout:.0%} text dropout, AdamW
{rate:g} with warm-up and cosine decay, moving average {ema:g}; the weights are the average's, in 16 bit.
Hardware: {hardware}. Time between the first and last log line, pauses and other work on the same machine included: VAE
{vae_minutes:.0f} min, UNet {unet_minutes:.0f} min. Mean loss of the last tenth: VAE {vae_loss:.4f}, UNet
{unet_loss:.4f}.

![loss](card/loss.png)

The VAE restores {count} test pictures to {psnr:.1f} dB.

## Samples

Guidance {guidance:g}, {steps} steps, seeds 0 to {last}; one row per prompt, nothing picked.

![samples](card/samples.png)

## Limits

{limits}
"""


def read_log(file: Path) -> list[dict]:
    """The training's log; where a run was resumed, the later line of a step counts."""
    lines = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        lines[entry["step"]] = entry
    return [lines[step] for step in sorted(lines)]


def loss_figure(logs: dict[str, list[dict]]) -> Figure:
    figure = Figure(figsize=(8, 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, log) in zip(figure.subplots(1, len(logs)), logs.items()):
        steps, losses = (np.array([entry[key] for entry in log]) for key in ("step", "loss"))
        window = max(1, len(losses) // 60)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps, losses, color="#c3cad3", linewidth=0.5)
        axes.plot(steps[window - 1 :], smooth, color="#2459a6", linewidth=1.2)
        axes.set(title=name, xlabel="step", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def prompts() -> list[str]:
    """One per object, going round the backgrounds; then two with two objects."""
    upper, lower = list(UPPER), list(LOWER)
    one = [f"{word}, {upper[i % len(upper)]}, {lower[i % len(lower)]}" for i, word in enumerate(OBJECTS)]
    return [*one, "ball, tree, sky, sand", "house, star, forest, snow"]


def sample_figure(pipe: StableDiffusionPipeline) -> Figure:
    rows = prompts()
    figure = Figure(figsize=(1.1 * SAMPLES + 1.6, 1.1 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), SAMPLES, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    figure.subplots_adjust(left=1.6 / (1.1 * SAMPLES + 1.6), right=0.995, top=0.995, bottom=0.005)
    for prompt, line in zip(tqdm(rows, desc="samples"), grid):
        generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
        images = pipe([prompt] * SAMPLES, guidance_scale=GUIDANCE, num_inference_steps=SAMPLING_STEPS,
                      generator=generators, output_type="np").images  # fmt: skip
        for axes, image in zip(line, images):
            axes.imshow(image)
            axes.axis("off")
        line[0].text(-0.06, 0.5, prompt.replace(", ", "\n"), transform=line[0].transAxes, ha="right", va="center",
                     fontsize=9)  # fmt: skip
    return figure


@torch.no_grad()
def psnr(pipe: StableDiffusionPipeline, count: int = 200) -> float:
    """Peak signal-to-noise ratio of encode + decode over test pictures, dB: the mean over pictures."""
    pictures = to_unit(np.stack([draw_scene(SPLITS["test"], i).picture for i in range(count)]), torch.device("cpu"))
    restored = torch.cat([pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample for p in pictures.split(20)])
    errors = (restored.clamp(-1, 1) - pictures).pow(2).mean((1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


def parts(pipe: StableDiffusionPipeline) -> list[tuple[str, str, int]]:
    vae, unet, text = pipe.vae.config, pipe.unet.config, pipe.text_encoder.config
    shapes = {
        "vae": f"AutoencoderKL, {vae.block_out_channels} channels, {vae.latent_channels} x 16 x 16 latents",
        "text_encoder": f"CLIPTextModel, {text.num_hidden_layers} layer, width {text.hidden_size}, {CONTEXT} tokens",
        "unet": f"UNet2DConditionModel, {unet.block_out_channels} channels, {unet.layers_per_block} layer per block, "
                f"{unet.attention_head_dim} heads, attention at 16 x 16 and 8 x 8",
    }  # fmt: skip
    return [(n, what, sum(p.numel() for p in getattr(pipe, n).parameters())) for n, what in shapes.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/mini-sd"), help="train_mini.py's --work")
    parser.add_argument("--folder", type=Path, default=SHIPPED, help="the pipeline")
    parser.add_argument("--hardware", required=True, help="what it was trained on, in words")
    parser.add_argument("--limits", type=Path, required=True, help="a text file: what was seen not to work")
    arguments = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(arguments.folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    logs = {name: read_log(arguments.work / f"{name}.jsonl") for name in ("vae", "unet")}
    save_figure(loss_figure(logs), arguments.folder / "card/loss.png", dpi=120)
    save_figure(sample_figure(pipe), arguments.folder / "card/samples.png", dpi=100)
    recipe, table = Recipe(), parts(pipe)
    minutes = {name: (log[-1]["time"] - log[0]["time"]) / 60 for name, log in logs.items()}
    losses = {name: np.mean([e["loss"] for e in log[-max(1, len(log) // 10) :]]) for name, log in logs.items()}
    card = CARD.format(
        parameters=sum(count for _, _, count in table) / 1e6,
        parts="\n".join(f"| {name} | {what} | {count / 1e6:.2f} M |" for name, what, count in table),
        words=", ".join(WORDS), pictures=recipe.pictures, seed=DATA_SEED,
        splits=", ".join(f"{name} {seed}" for name, seed in SPLITS.items()),
        vae_steps=logs["vae"][-1]["step"], vae_batch=recipe.vae_batch, unet_steps=logs["unet"][-1]["step"],
        unet_batch=recipe.unet_batch, dropout=recipe.text_dropout, rate=recipe.unet_rate, ema=recipe.ema,
        hardware=arguments.hardware, vae_minutes=minutes["vae"], unet_minutes=minutes["unet"],
        vae_loss=losses["vae"], unet_loss=losses["unet"], count=200, psnr=psnr(pipe),
        guidance=GUIDANCE, steps=SAMPLING_STEPS, last=SAMPLES - 1, limits=arguments.limits.read_text().strip(),
    )  # fmt: skip
    part = arguments.folder / "README.md.part"
    part.write_text(card)
    part.rename(arguments.folder / "README.md")
    print(f"card: {arguments.folder / 'README.md'}")


if __name__ == "__main__":
    main()
