"""`goca synth` on the embedded model: pairs, resume, classes that never come out."""

import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from goca.cli import main
from goca.config import load_config
from goca.embedded import embedded_pipeline
from goca.labelsets.plan import balanced
from goca.labelsets.store import Store
from goca.labelsets.synthetic import Generation, Generator, generate
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

FEW = ["--steps", "4", "--tries", "1", "--batch", "2", "--backgrounds", "sky, grass"]


def command(out, *more, classes="star, fish", count=4):
    return ["synth", "--classes", classes, "--count", str(count), "--out", str(out), *FEW, *more]


def files(folder):
    kept = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("log")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_pairs_with_metadata(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(out, "--presence", "0", "--format", "voc,masks", "--val", "0.5")) == 0
    content = json.loads((out / "metadata.json").read_text())
    assert content["settings"]["steps"] == 4 and content["settings"]["model"] == "mini-sd"
    assert len(content["images"]) == 4
    for record in content["images"]:
        assert all(name in record["prompt"] for name in record["classes"]) and record["seed"] >= 0
        assert record["split"] in ("train", "val")
        label = np.asarray(Image.open(out / "labels" / f"{record['name']}.png"))
        with Image.open(out / "images" / f"{record['name']}.png") as image:
            assert image.size == label.shape[::-1] == (64, 64)
        assert np.mean(label == 255) == pytest.approx(record["doubt"], abs=1e-6)
        table = {"star": 1, "fish": 2}
        assert set(np.unique(label)) - {0, 255} == {table[n] for n, area in record["areas"].items() if area}
    lists = (out / "voc/ImageSets/Segmentation").iterdir()
    listed = [name for path in lists for name in path.read_text().split()]
    assert sorted(listed) == [f"{number:06d}" for number in range(4)]


def test_a_larger_set_goes_on_and_equals_one_made_at_once(tmp_path):
    assert main(command(tmp_path / "grown", "--presence", "0", count=2)) == 0
    lines = (tmp_path / "grown/log.jsonl").read_bytes()
    assert main(command(tmp_path / "grown", "--presence", "0", count=4)) == 0
    assert (tmp_path / "grown/log.jsonl").read_bytes().startswith(lines)
    assert main(command(tmp_path / "once", "--presence", "0", count=4)) == 0
    assert files(tmp_path / "grown") == files(tmp_path / "once")


def test_a_batch_that_was_cut_off_is_done_again(tmp_path):
    assert main(command(tmp_path / "whole", "--presence", "0")) == 0
    assert main(command(tmp_path / "cut", "--presence", "0")) == 0
    log = tmp_path / "cut/log.jsonl"
    log.write_bytes(log.read_bytes()[:-25])  # the last line is half there, as after a kill
    (tmp_path / "cut/labels/000003.png").unlink()
    assert main(command(tmp_path / "cut", "--presence", "0")) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_class_that_never_comes_out_is_said_with_its_tries(tmp_path, capsys):
    given = command(tmp_path / "out", "--presence", "1", "--tries", "2", classes="star", count=2)
    assert main(given) == 1
    said = capsys.readouterr()
    assert "'star' never appeared, in 4 generations" in said.err and "0 pairs" in said.out
    assert not (tmp_path / "out/images").exists()
    assert main(command(tmp_path / "kept", "--presence", "1", "--absent", "mark", classes="star", count=2)) == 1
    records = json.loads((tmp_path / "kept/metadata.json").read_text())["images"]
    assert all(record["missing"] == ["star"] and not record["dropped"] for record in records)
    assert len(list((tmp_path / "kept/images").iterdir())) == 2


@pytest.mark.parametrize("absent", ["drop", "mark"])
def test_an_image_that_the_safety_checker_blacks_out_never_enters_a_set(tmp_path, absent):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=4)).eval()
    pipe = embedded_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_checker = checker
    pipe.feature_extractor = CLIPImageProcessor(size=32, crop_size=32)
    how = Generation(steps=2, tries=2, absent=absent, least_area=0, least_presence=0)
    generator = Generator(pipe, load_config("mini-sd"), {1: "star"}, how)
    plan = balanced(generator.classes, 1, 0, (1, 1))

    def record(folder, threshold):
        torch.nn.init.constant_(checker.concept_embeds_weights, threshold)  # of a cosine, which is never below -1
        store = Store(tmp_path / folder, how.settings())
        (made,) = generate(generator, plan, store)
        store.close()
        return made

    torch.nn.init.constant_(checker.special_care_embeds_weights, 2)
    passed, hidden = record("passed", 2), record("hidden", -2)
    assert not passed["withheld"] and not passed["dropped"] and passed["tries"] == 1
    assert hidden["withheld"] and hidden["dropped"] and hidden["missing"] == ["star"] and hidden["tries"] == 2
    assert (tmp_path / "passed/images").is_dir() and not (tmp_path / "hidden/images").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trace-steps", "some"], "expected one of: all, first half"),
        (["--together", "5-6"], "5 to 6 classes per image of 2"),
        (["--together", "x"], "expected e.g. 1-2 or 2"),
        (["--template", "a"], "lacks {objects}"),
        (["--absent", "hide"], "expected one of: drop, mark"),
        (["--steps", "0"], "--steps is 0"),
        (["--model", "sd51"], "sd51"),
    ],
)
def test_bad_arguments(tmp_path, capsys, more, message):
    assert main(command(tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_text_encoder_cuts(tmp_path, capsys):
    assert main(command(tmp_path / "out", classes="star, " + "x" * 60)) == 1
    assert "the text encoder cuts the words of" in capsys.readouterr().err
