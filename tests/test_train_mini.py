"""The training script, a few steps of everything: it stops anywhere, goes on from there, and ends in an SD folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedded.mini_model import CONTEXT, WORDS, build_tokenizer  # noqa: E402


def train(work: Path, out: Path, *arguments: str) -> None:
    script = str(REPOSITORY / "scripts/train_mini.py")
    command = [sys.executable, script, "--quick", "--work", str(work), "--out", str(out)]
    subprocess.run([*command, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work = tmp_path_factory.mktemp("mini")
    train(work / "a", work / "a/out")
    return work


def test_the_folder_is_a_stable_diffusion_pipeline_of_at_most_12_mb(trained):
    folder = trained / "a/out"
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("ball, sky, grass", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 12 * 2**20
    with safe_open(folder / "unet/diffusion_pytorch_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(k).dtype for k in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_a_run_that_was_cut_goes_on_from_its_checkpoint(trained):
    log = [json.loads(line)["step"] for line in (trained / "a/unet.jsonl").read_text().splitlines()]
    assert log == [6]
    train(trained / "a", trained / "a/longer", "--steps", "9")
    log = [json.loads(line)["step"] for line in (trained / "a/unet.jsonl").read_text().splitlines()]
    assert log == [6, 9]
    with safe_open(trained / "a/unet.safetensors", "pt") as saved:
        assert saved.metadata()["step"] == "9"


def test_every_word_of_the_scenes_is_one_token(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    other = tokenizer("a zebra, näive café").input_ids
    assert tokenizer.decode(other, skip_special_tokens=True) == "a zebra , näive café"
    assert tokenizer("ball", padding="max_length").input_ids[2:] == [tokenizer.eos_token_id] * (CONTEXT - 2)
