"""docs/models.md against the installed diffusers and what the code serves."""

import ast
import importlib.util
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusion_feature.families import VERSIONS
from diffusion_feature.vaes import KINDS
from docpages import pages
from goca.config import load_config, names
from sizes import SIZES

PIPELINES = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0]) / "pipelines"
# not text-to-image: they begin with an image, are told one, make another kind of thing, or are a stage of others
OTHERS = re.compile(
    "Img2Img|Inpaint|Control|PAG|Video|Edit|Adapter|Upscale|SuperRes|Decoder|Prior|I2V|T2V|I2I|TI2V|Refiner|Panorama|SAG|"
    "GLIGEN|Kontext|Fill|Layered|KV"
)
ROWS = [[cell.strip() for cell in line[1:-1].split("|")] for line in pages()["docs/models.md"].splitlines()]
TABLE = {
    row[0].strip("`"): [row[0], *(cell.strip("`") for cell in row[1:6]), *row[6:]] for row in ROWS if len(row) == 9
}
TABLE = {name: row for name, row in TABLE.items() if name.endswith("Pipeline")}
SERVED = {name: re.findall(r"`([\w.-]+)`", row[8]) for name, row in TABLE.items() if row[8].startswith("`")}


def arguments(kind: ast.ClassDef, method: str):
    """Names of a method's arguments, and of those without a default; annotations by name."""
    found = next((each for each in kind.body if isinstance(each, ast.FunctionDef) and each.name == method), None)
    if found is None:
        return [], [], {}
    every = [each.arg for each in found.args.args]
    kinds = {each.arg: ast.unparse(each.annotation) for each in found.args.args if each.annotation}
    return every, every[1 : len(every) - len(found.args.defaults)], kinds


def text_to_image():
    """Pipelines that are called with a prompt and a size, and need no image: the annotations of their parts by name."""
    found = {}
    for file in sorted(PIPELINES.rglob("pipeline_*.py")):
        if "deprecated" in file.parts:
            continue
        for kind in ast.parse(file.read_text()).body:
            if isinstance(kind, ast.ClassDef) and kind.name.endswith("Pipeline") and not OTHERS.search(kind.name):
                every, needed, _ = arguments(kind, "__call__")
                video = {"num_frames", "video_length", "frames"} & set(every)
                if {"prompt", "height", "width"} <= set(every) and not video and "image" not in needed:
                    found[kind.name] = arguments(kind, "__init__")[2]
    return found


@pytest.fixture(scope="module")
def installed():
    return text_to_image()


def test_every_text_to_image_pipeline_has_a_row(installed):
    assert set(TABLE) == set(installed)
    assert all(len(row) == 9 and all(row[:6]) and row[8] for row in TABLE.values())


def test_denoiser_and_vae_are_the_pipelines(installed):
    for name, (_, denoiser, _, _, vae, *_) in TABLE.items():
        parts = installed[name]
        theirs = parts.get("transformer") or parts.get("unet") or parts.get("prior_prior", "")
        assert denoiser in theirs or denoiser == "ONNX", name
        if "vae" in parts and vae.startswith("Autoencoder"):
            assert re.split("[` ]", vae)[0] in parts["vae"], name


def test_every_config_has_a_row_and_the_row_its_family():
    told = {config for configs in SERVED.values() for config in configs}
    variants = ("-vanilla", "-plus", "-baseline", "-diffsegmentor", "diffsegmentor", "fttm")
    assert {name for name in names() if not name.endswith(variants)} - told == set()
    assert told <= set(names())
    for pipeline, configs in SERVED.items():
        for config in configs:
            assert VERSIONS[load_config(config).version].kind == TABLE[pipeline][1]


def test_families_without_a_row_are_not_served():
    kinds = {family.kind for family in VERSIONS.values()}
    assert kinds == {TABLE[name][1] for name in SERVED}


@pytest.mark.parametrize("name", SIZES)
def test_layout_vae_and_noise_are_what_the_family_has(name):
    row = next(TABLE[pipeline] for pipeline, configs in SERVED.items() if name in configs)
    family = VERSIONS[load_config(name).version]
    kind, settings = SIZES[name]
    with torch.device("meta"):
        denoiser = getattr(diffusers, kind)(**settings)
    layers = family.layers(denoiser)
    assert {layer.layout for layer in layers} <= set(re.findall(r"[\w-]+", row[2]))
    assert ("before the text" in row[2]) == any(layer.own(16) for layer in layers)
    assert row[4] in ("AutoencoderKL", *KINDS)
    assert row[5] == ("flow" if "rectified_flow" in repr(family.noise_level) else "variance preserving")
    assert (family.template is None) == bool(re.match("T5|UMT5|CLIP|BERT", row[3]))
    if name != "bria-3.2":
        counted = sum(weight.numel() for weight in denoiser.parameters()) / 1e9
        assert any(abs(counted - float(each)) < 0.06 for each in re.findall(r"[\d.]+", row[6]))
