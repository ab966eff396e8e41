"""The training script's other kinds, a few steps of everything: folders that diffusers and the method both take."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from goca import Segmenter
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import make_card  # noqa: E402
from embedded.mini_family import KINDS, guided  # noqa: E402
from embedded.mini_model import build_tokenizer  # noqa: E402
from embedded.mini_parts import FAMILY_WORDS, build_t5_tokenizer  # noqa: E402
from embedded.mini_tasks import rectified_flow, velocity  # noqa: E402
from embedded.resumable_training import DECAYS, Trainer  # noqa: E402
from embedded.scenes_hard import KINDS as CAPTIONS  # noqa: E402
from embedded.scenes_hard import caption_of, draw_scene  # noqa: E402
from make_scenes import WORLDS  # noqa: E402
from train_mini import RECIPES, Recipe, marks_of  # noqa: E402

METHOD = {  # version, reference layer, space layers
    "mini-sd-small": ("mini", "up-level1-repeat0-vit-block0-cross-q", ["up-level1-repeat0-vit-block0-self-map"]),
    "mini-pixart": ("pixart-sigma", "vit-block4-cross-q", ["vit-block4-self-map"]),
    "mini-flux": ("mini-flux", "vit-block3-attn-out", ["vit-block1-self-map"]),
}
CLASSES = {
    "mini-sd-small": "StableDiffusionPipeline",
    "mini-pixart": "PixArtSigmaPipeline",
    "mini-flux": "FluxPipeline",
}


@pytest.fixture(scope="module", params=METHOD)
def trained(request, tmp_path_factory):
    work = tmp_path_factory.mktemp(request.param)
    script = str(REPOSITORY / "scripts/train_mini.py")
    command = [
        sys.executable,
        script,
        "--quick",
        "--kind",
        request.param,
        "--work",
        str(work),
        "--data",
        str(work / "data"),
        "--out",
        str(work / "out"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return request.param, work


def test_the_folder_is_a_pipeline_of_its_class_of_at_most_12_mb(trained):
    kind, work = trained
    pipe = DiffusionPipeline.from_pretrained(work / "out", dtype=torch.float32, use_safetensors=True)
    assert type(pipe).__name__ == CLASSES[kind]
    pipe.set_progress_bar_config(disable=True)
    image = pipe("traffic light, sky", num_inference_steps=2, output_type="np", **guided(pipe, 1.0, 1)).images[0]
    assert image.shape == (KINDS[kind].image_side, KINDS[kind].image_side, 3) and np.isfinite(image).all()
    assert sum(f.stat().st_size for f in (work / "out").rglob("*") if f.is_file()) <= 12 * 2**20


def test_the_method_runs_on_it_at_16_x_16(trained):
    kind, work = trained
    version, reference, space = METHOD[kind]
    config = {
        "version": version,
        "img_size": KINDS[kind].image_side,
        "feat_size": 16,
        "t": 200,
        "ref_layer": reference,
        "self_layers": space,
        "affinity_order": 1,
    }
    segmenter = Segmenter.from_pretrained(work / "out", config)
    result = segmenter(Image.fromarray(draw_scene(1, 0).image), "traffic light, sky")
    assert result.scores.shape[-2:] == (16, 16) and torch.isfinite(result.scores).all()


def test_checkpoints_along_the_way_are_pipelines_too_and_differ(trained):
    kind, work = trained
    part = KINDS[kind].denoiser
    folders = [work / "middle", work / "advanced", work / "out"]
    weights = [(folder / part / "diffusion_pytorch_model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == 3
    assert DiffusionPipeline.load_config(work / "middle")["_class_name"] == CLASSES[kind]
    assert not any("_name_or_path" in json.loads(each.read_text()) for each in work.glob("*/*/config.json"))


def test_the_card_tells_what_the_model_was_made_of(trained, monkeypatch):
    kind, work = trained
    monkeypatch.setattr(make_card, "SAMPLES", 2)
    monkeypatch.setattr(make_card, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(make_card, "RESTORED", 4)
    pipe = DiffusionPipeline.from_pretrained(work / "out", dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    card = make_card.write_card(work / "out", pipe, kind, work, hardware="a test", limits="It learned nothing.")
    assert CLASSES[kind] in card and "6 steps of 32 images" in card and "It learned nothing." in card
    assert {file.name for file in (work / "out/card").iterdir()} == {"loss.png", "samples.webp"}
    for world in ("scenes", "scenes-hard"):
        assert f"{world} test {WORLDS[world].splits['test']}" in card


def test_the_held_out_loss_is_logged_at_each_checkpoint(trained):
    kind, work = trained
    log = (work / f"{KINDS[kind].denoiser}-validation.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    assert [entry["step"] for entry in entries] == [3, 6] and all(entry["loss"] > 0 for entry in entries)


def test_every_word_of_both_worlds_is_one_piece_and_captions_fit():
    tokenizer = build_t5_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 2 for word in FAMILY_WORDS)
    random, unknown = np.random.RandomState(0), tokenizer.unk_token_id
    lengths = []
    for index in range(60):
        for kind in CAPTIONS:
            ids = tokenizer(caption_of(draw_scene(3, index).words, random, kind).replace("(", "")).input_ids
            assert unknown not in ids
            lengths.append(len(ids))
    assert max(lengths) <= tokenizer.model_max_length


def test_a_tokenizer_of_other_words_is_written_over(tmp_path):
    for words in (["ball"], ["traffic", "light"]):
        tokenizer = build_tokenizer(tmp_path, words, context=8)
        assert all(len(tokenizer(word).input_ids) == 3 for word in words) and tokenizer.model_max_length == 8


def test_what_is_predicted_leads_back_to_the_clean_latents():
    clean = torch.randn(64, 2, 4, 4)
    levels = torch.linspace(0.99, 0.01, 1000)
    task = velocity(levels, spread=(-0.5, 1.0), cap=5.0)(clean, torch.Generator().manual_seed(0))
    level = levels[task.t][:, None, None, None]
    assert torch.allclose(level.sqrt() * task.noised - (1 - level).sqrt() * task.target, clean, atol=1e-5)
    snr = level / (1 - level)
    assert torch.allclose(torch.as_tensor(task.weight), (6 / (snr + 1)).clamp_max(1), atol=1e-4)
    task = rectified_flow(clean, torch.Generator().manual_seed(0))
    assert torch.allclose(task.noised - task.t[:, None, None, None] * task.target, clean, atol=1e-5)


@pytest.mark.parametrize("name", DECAYS)
def test_the_rate_falls_from_one_to_zero(name):
    values = [DECAYS[name](i / 100) for i in range(101)]
    assert values[0] == 1 and abs(values[-1]) < 1e-9 and values == sorted(values, reverse=True)


def rates(work, steps, annealed):
    """The learning rates of a training of one weight, and the trainer."""
    recipe = Recipe(decay="late linear", warm_up=2, save_every=1000)
    weight, seen = torch.nn.Linear(1, 1), []
    trainer = Trainer("weight", {"weight": weight}, work, steps, 1.0, recipe, annealed=annealed)

    def loss_at(step, part):
        seen.append(trainer.rate_now())
        return weight(torch.ones(1, 1)).square().mean()

    trainer.run(loss_at, [slice(0, 1)])
    return seen


def test_an_annealed_training_goes_on_at_the_full_rate(tmp_path):
    for folder in ("once", "twice"):
        (tmp_path / folder).mkdir()
    once, twice = rates(tmp_path / "once", 20, 0), rates(tmp_path / "twice", 40, 20)
    assert twice[:20] == once and once[19] == pytest.approx(1 / 6)
    assert twice[20:28] == [1.0] * 8 and twice[39] == pytest.approx(1 / 12)


def test_a_longer_training_continues_a_finished_one(tmp_path):
    assert len(rates(tmp_path, 20, 0)) == 20
    assert rates(tmp_path, 30, 20) == pytest.approx([1.0, 1.0, *np.linspace(8, 1, 8) / 9])


def test_checkpoints_are_those_of_the_first_annealing():
    short, long = Recipe(steps=2600), Recipe(steps=5200, annealed=0.5)
    assert marks_of(long) == {**marks_of(short), 2600: "annealed"}
    assert all(step < RECIPES[kind].steps for kind in KINDS for step in marks_of(RECIPES[kind]))
