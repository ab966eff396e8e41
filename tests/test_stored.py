"""The config of a stored pipeline is found from its JSON files, for a folder as for a pipeline object."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import tiny
import torch
from diffusion_feature import PipelineNotFound
from families import FAMILIES
from goca import Segmenter, embedded_pipeline
from goca.config import ConfigError, load_config
from goca.embedded import resolve
from goca.generation.adapters import ConfigNotKnown, config_of
from goca.generation.stored import config_of_place
from PIL import Image

SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00000.png"


@pytest.mark.parametrize("name", ["sdxl", "pixart", "hunyuan", "flux", "sd3"])
def test_a_folder_s_config_is_that_of_its_pipeline(name, tmp_path):
    folder = FAMILIES[name].save(tmp_path / name)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    weights = [*folder.rglob("*.safetensors")]
    for file in weights:
        file.unlink()  # they are not read
    assert weights and config_of_place(str(folder)) == config_of(pipe)


def test_a_segmenter_needs_no_config_for_a_pipeline_that_is_known(tmp_path):
    image, prompt = Image.open(SCENE), "star, wall, snow"
    named = Segmenter.from_pretrained(None, "mini-sd", device="cpu")(image, prompt)
    copy = tmp_path / "mine"
    shutil.copytree(resolve("goca:mini-sd"), copy)
    for place in (copy, str(copy), embedded_pipeline(), "goca:mini-sd"):
        segmenter = Segmenter.from_pretrained(place, device="cpu")
        assert torch.equal(segmenter(image, prompt).scores, named.scores)
        assert segmenter.config == load_config("mini-sd")


def test_a_config_that_names_the_pipeline_comes_before_that_of_its_family(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where this hub id is a folder
    place = "playgroundai/playground-v2-1024px-aesthetic"
    tiny.save_sdxl(tmp_path / place)
    assert config_of_place(place) == "playground-v2"
    assert config_of_place(str(tmp_path / place)) == "sdxl"


def test_another_denoiser_decides(tmp_path):
    home, other = FAMILIES["pixart"].save(tmp_path / "home"), tmp_path / "other"
    shutil.copytree(home / "transformer", other)
    config = json.loads((other / "config.json").read_text())
    (home / "transformer" / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config | {"_class_name": "SanaTransformer2DModel"}))
    assert config_of_place(str(home), str(other)) == "sana"


def test_what_is_not_known_is_said(tiny_sd, tmp_path):
    with pytest.raises(ConfigNotKnown, match=r"tiny-sd: no config is known for the UNet2DConditionModel"):
        Segmenter.from_pretrained(str(tiny_sd), device="cpu")
    with pytest.raises(PipelineNotFound, match=r"model_index\.json"):
        Segmenter.from_pretrained(str(tmp_path), device="cpu")
    with pytest.raises(ConfigError, match="neither a pipeline nor a config"):
        Segmenter.from_pretrained(None, device="cpu")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ConfigNotKnown, match="has no denoiser"):
        config_of_place(str(tmp_path))
