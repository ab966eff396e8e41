"""The card of a small model: what it was made of, loss curves, samples with guidance, and what the VAE loses.

    python3 scripts/make_card.py --kind mini-pixart --hardware "..." --limits FILE     after train_mini.py

Writes README.md and card/ into the pipeline's folder. Every number in the card is measured here or read from the
training's own logs and recipe.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from embedded.backgrounds import LOWER, UPPER
from embedded.mini_data import DATA_SEED, HELD_OUT_SEED, to_unit
from embedded.mini_family import KINDS, guided
from embedded.mini_model import WORDS
from embedded.mini_parts import FAMILY_WORDS, TEXT
from embedded.scene_drawing import OBJECTS
from goca.config import load_config
from goca.drawing.figures import save_figure
from goca.files.atomic import whole_file
from make_scenes import WORLDS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm
from train_mini import RECIPES, SHIPPED

GUIDANCE, SAMPLING_STEPS, SAMPLES = 4.0, 30, 6
RESTORED = 200  # test images of each world that the VAE is tried on

CARD = """\
# {kind}

A text-to-image latent diffusion model of {parameters:.1f} M parameters for {side} x {side} scenes, in the folder format
of `{pipeline}`. It ships so that the method can be tried, tested and taught without a download; it is not a
model of the world.

| part | what | parameters |
|---|---|---|
{parts}

Words: {words}. Anything else is spelt in bytes and means nothing to it. Prompts are nouns in any order, with or without
commas: `ball, sky, grass`.{called}

## How it was made

`python3 scripts/train_mini.py --kind {kind}`, {start}, on images that `scripts/embedded/scene_drawing.py` and
`scripts/embedded/scenes_hard.py` draw: {images} of data seed {seed}, and their mirror images. The validation loss is
of {held_out} images of each world, seed {held_out_seed}; the splits that are measured on have the seeds {splits}.
{vae_training} Text and denoiser together: {steps} steps of {batch} images, {target}, {dropout:.0%} text dropout,
AdamW {rate:g} with warm-up and {decay} decay, moving average {ema:g}; the weights are its, in 16 bit.{annealed}{halved}
Hardware: {hardware}. Time between the first and last log line, pauses and other work on the same machine included:
{minutes}. Mean loss of the last tenth: {losses}.{validation}

![loss](card/loss.png)

The VAE restores {count} test images of each world: {psnr}.

## Samples

Guidance {guidance:g}, {sampling} steps, seeds 0 to {last}; one row per prompt, nothing picked.

![samples](card/samples.webp)

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


def loss_figure(logs: dict[str, list[dict]], validations: dict[str, list[dict]]) -> Figure:
    """A panel per training: the loss of single steps, their moving mean, and the validation loss where there is one."""
    figure = Figure(figsize=(4 * len(logs), 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items()):
        steps, losses = (np.array([entry[key] for entry in log]) for key in ("step", "loss"))
        window = max(1, len(losses) // 60)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps, losses, color="#c3cad3", linewidth=0.5)
        axes.plot(steps[window - 1 :], smooth, color="#2459a6", linewidth=1.2, label="training")
        if checks := validations.get(name):
            points = zip(*((entry["step"], entry["loss"]) for entry in checks))
            axes.plot(*points, color="#c0504d", linewidth=1.0, label="validation")
            axes.legend(frameon=False, fontsize=8)
        axes.set(title=name, xlabel="step", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


HARD_PROMPTS = [
    "traffic light, cup, sky, road",
    "air balloon, boat, sky, water",
    "red car, blue house, wall, sand",
    "bird, mushroom, forest, grass",
    "a street lamp, a fish, the wall, the snow",
]


def prompts(hard: bool) -> list[str]:
    """One per object of scenes, going round the backgrounds, and two with two; `hard`: three of these, then others."""
    upper, lower = list(UPPER), list(LOWER)
    one = [f"{word}, {upper[i % len(upper)]}, {lower[i % len(lower)]}" for i, word in enumerate(OBJECTS)]
    rows = [*one, "ball, tree, sky, sand", "house, star, forest, snow"]
    return rows[:3] + HARD_PROMPTS if hard else rows


def sample_figure(pipe: DiffusionPipeline, hard: bool) -> Figure:
    rows = prompts(hard)
    figure = Figure(figsize=(1.1 * SAMPLES + 1.6, 1.1 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), SAMPLES, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    figure.subplots_adjust(left=1.6 / (1.1 * SAMPLES + 1.6), right=0.995, top=0.995, bottom=0.005)
    for prompt, line in zip(tqdm(rows, desc="samples"), grid):
        generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
        images = pipe(
            [prompt] * SAMPLES,
            num_inference_steps=SAMPLING_STEPS,
            generator=generators,
            output_type="np",
            **guided(pipe, GUIDANCE, SAMPLES),
        ).images
        for axes, image in zip(line, images):
            axes.imshow(image)
            axes.axis("off")
        line[0].text(
            -0.06, 0.5, prompt.replace(", ", "\n"), transform=line[0].transAxes, ha="right", va="center", fontsize=9
        )
    return figure


@torch.no_grad()
def psnr(pipe: DiffusionPipeline, world: str, enlarge: int) -> float:
    """Peak signal-to-noise ratio of encode + decode over test images, dB: the mean over images."""
    drawn = [WORLDS[world].draw(WORLDS[world].splits["test"], i).image for i in range(RESTORED)]
    images = to_unit(np.stack(drawn), torch.device("cpu"), enlarge)
    restored = torch.cat([pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample for p in images.split(20)])
    errors = (restored.clamp(-1, 1) - images).pow(2).mean((1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


def describe(part: torch.nn.Module, image_side: int) -> str:
    """One line about a part, read from its configuration."""
    c, name = part.config, type(part).__name__
    if name == "AutoencoderKL":
        side = image_side // 2 ** (len(c.block_out_channels) - 1)
        return f"{name}, {list(c.block_out_channels)} channels, {c.latent_channels} x {side} x {side} latents"
    if name == "UNet2DConditionModel":
        return (
            f"{name}, {list(c.block_out_channels)} channels, {c.layers_per_block} layer per block, "
            f"{c.attention_head_dim} heads, attention at 16 x 16 and 8 x 8"
        )
    if name == "CLIPTextModel":
        return f"{name}, {c.num_hidden_layers} layer, width {c.hidden_size}, {c.max_position_embeddings} tokens"
    if name == "T5EncoderModel":
        return f"{name}, {c.num_layers} layers, width {c.d_model}, {TEXT} tokens"
    heads = f"{c.num_attention_heads} heads of {c.attention_head_dim}, 16 x 16 image tokens"
    if name == "FluxTransformer2DModel":
        return f"{name}, {c.num_layers} double- and {c.num_single_layers} single-stream blocks, {heads}"
    return f"{name}, {c.num_layers} blocks, {heads}"


def parts(pipe: DiffusionPipeline, image_side: int) -> list[tuple[str, str, int]]:
    """(name, description, parameters) of every network of the pipeline."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return [
        (name, describe(part, image_side), sum(p.numel() for p in part.parameters())) for name, part in networks.items()
    ]


TARGETS = {
    "StableDiffusionPipeline": "v-prediction, Stable Diffusion's scaled-linear betas",
    "PixArtSigmaPipeline": "v-prediction, PixArt's linear betas, logit-normal timesteps, low noise weighed down",
    "FluxPipeline": "rectified flow, logit-normal times",
}
ANNEALED = "\nThe rate fell to zero once, at step {:d}, and began anew at its full height."
HALVED = "\nOf the steps, {:.1%} saw images of half the side."
CALLED = " Called as `pipe(prompt, {arguments})`."


def listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def write_card(folder: Path, pipe: DiffusionPipeline, kind_name: str, work: Path, hardware: str, limits: str) -> str:
    kind, recipe, table = KINDS[kind_name], RECIPES[kind_name], parts(pipe, KINDS[kind_name].image_side)
    logs = {
        name: read_log(work / f"{name}.jsonl") for name in ("vae", kind.denoiser) if (work / f"{name}.jsonl").exists()
    }
    checks = work / f"{kind.denoiser}-validation.jsonl"
    validation = read_log(checks) if checks.exists() else []
    save_figure(loss_figure(logs, {kind.denoiser: validation}), folder / "card/loss.png", dpi=120)
    save_figure(sample_figure(pipe, "scenes-hard" in kind.worlds), folder / "card/samples.webp", dpi=100)
    minutes = {name: f"{(log[-1]['time'] - log[0]['time']) / 60:.0f} min" for name, log in logs.items()}
    losses = {name: f"{np.mean([e['loss'] for e in log[-max(1, len(log) // 10) :]]):.4f}" for name, log in logs.items()}
    own = isinstance(kind.vae, str)
    vae = f"The VAE is that of {kind.vae}." if own else f"VAE: {recipe.vae_steps} steps of {recipe.vae_batch} images."
    arguments = ", ".join(f"{name}={value!r}" for name, value in guided(pipe, GUIDANCE, 1).items())
    splits = {f"{world} {split}": str(seed) for world in kind.worlds for split, seed in WORLDS[world].splits.items()}
    return CARD.format(
        kind=kind_name,
        pipeline=type(pipe).__name__,
        parameters=sum(count for *_, count in table) / 1e6,
        side=kind.image_side,
        parts="\n".join(f"| {name} | {what} | {count / 1e6:.2f} M |" for name, what, count in table),
        words=", ".join(WORDS if kind_name == "mini-sd" else FAMILY_WORDS),
        called=CALLED.format(arguments=arguments) if load_config(kind_name).call else "",
        start="all but the VAE from random weights" if own else "everything from random weights",
        images=listed({world: str(count) for world, count in kind.worlds.items()}),
        seed=DATA_SEED,
        held_out=recipe.held_out,
        held_out_seed=HELD_OUT_SEED,
        splits=listed(splits),
        vae_training=vae,
        steps=logs[kind.denoiser][-1]["step"],
        batch=recipe.batch,
        target=TARGETS[type(pipe).__name__],
        dropout=recipe.text_dropout,
        rate=recipe.rate,
        decay=recipe.decay,
        ema=recipe.ema,
        annealed=ANNEALED.format(round(recipe.annealed * recipe.steps)) if recipe.annealed else "",
        halved=HALVED.format(recipe.halved) if recipe.halved else "",
        hardware=hardware,
        minutes=listed(minutes),
        losses=listed(losses),
        validation=f" Last validation loss: {validation[-1]['loss']:.4f}." if validation else "",
        count=RESTORED,
        psnr=listed({world: f"{psnr(pipe, world, kind.enlarge):.1f} dB" for world in kind.worlds}),
        guidance=GUIDANCE,
        sampling=SAMPLING_STEPS,
        last=SAMPLES - 1,
        limits=limits.strip(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="mini-sd")
    parser.add_argument("--work", type=Path, help="train_mini.py's --work; by default runs/KIND")
    parser.add_argument("--folder", type=Path, help="the pipeline; by default the one that ships")
    parser.add_argument("--hardware", required=True, help="what it was trained on, in words")
    parser.add_argument("--limits", type=Path, required=True, help="a text file: what was seen not to work")
    arguments = parser.parse_args()
    folder, work = arguments.folder or SHIPPED / arguments.kind, arguments.work or Path("runs") / arguments.kind
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    card = write_card(folder, pipe, arguments.kind, work, arguments.hardware, arguments.limits.read_text())
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(card)
    print(f"card: {folder / 'README.md'}")


if __name__ == "__main__":
    main()
