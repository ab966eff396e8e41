"""Pipelines as they were published (tests/published.py): every config loads; variants, a second place, refusals."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import published
import pytest
import torch
from diffusers import PixArtAlphaPipeline
from diffusion_feature import ExtractorError, FeatureExtractor, PartMissing, PipelineNotFound, WrongFamily
from diffusion_feature.families import VERSIONS
from diffusion_feature.latents import encode_safely
from diffusion_feature.reading import read_pipeline
from diffusion_feature.repository import Repository, chosen, variants
from families import FAMILIES
from goca import Segmenter
from goca.benchmark.predictor import SEGMENTERS
from goca.cli import places as doctor_places
from goca.cli.overrides import completed
from goca.config import load_config, names
from goca.prompts import load_tokenizers
from PIL import Image
from sizes import SIZES

ALPHA, SIGMA = "PixArt-alpha/PixArt-XL-2-512x512", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
SIGMA_512, SD15 = "PixArt-alpha/PixArt-Sigma-XL-2-512-MS", "stable-diffusion-v1-5/stable-diffusion-v1-5"
CONFIGS = {name: load_config(name) for name in names()}
PLACES = dict.fromkeys(
    (each.pipeline, each.denoiser) for each in CONFIGS.values() if each.pipeline in published.LAYOUTS
)
SMALL = {"img_size": 64, "feat_size": 8}
DIT = {
    "config": {
        "_class_name": "Transformer2DModel",
        "norm_type": "ada_norm_zero",
        "num_embeds_ada_norm": 10,
        "attention_head_dim": 8,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 1,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 8,
        "norm_num_groups": 2,
    },
    "weights": ["float32"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a published repository, written when it is first asked for."""
    root = tmp_path_factory.mktemp("published")
    return cache(lambda name: str(published.save(name, root / name)))


def extractor(place, pipeline, denoiser=None, **given):
    version = next(each.version for each in CONFIGS.values() if (each.pipeline, each.denoiser) == (pipeline, denoiser))
    second = place(denoiser) if denoiser else None
    return FeatureExtractor((), version, "cpu", img_size=64, pipeline=place(pipeline), denoiser=second, **given)


def test_every_config_but_the_embedded_models_has_a_layout():
    elsewhere = {name for name, each in CONFIGS.items() if each.pipeline not in published.LAYOUTS}
    assert elsewhere == {name for name in CONFIGS if name.startswith("mini-")} | set(SIZES) | {"kolors"}
    assert {each for pair in PLACES for each in pair if each} == set(published.LAYOUTS)


@pytest.mark.parametrize(("pipeline", "denoiser"), PLACES, ids=lambda each: each and each.split("/")[1])
def test_every_config_loads_from_its_published_layout(place, pipeline, denoiser):
    fx = extractor(place, pipeline, denoiser)
    assert type(fx.denoiser).__name__ == fx.backbone.kind and fx.denoiser.dtype == torch.float32
    own = {name: each for name, each in CONFIGS.items() if (each.pipeline, each.denoiser) == (pipeline, denoiser)}
    for config in own.values():
        segmenter = SEGMENTERS[config.method](fx, config)  # every layer that it names is there
        annotation, words = segmenter.read_prompt("cat, grass, sky")
        assert list(words.values()) == ["cat", "grass", "sky"] and not annotation.lost_classes()
    states = fx.backbone.encode_text(fx.parts, ["cat, grass"]).arguments["encoder_hidden_states"]
    assert states.isfinite().all()
    assert "tokenizer" in load_tokenizers(place(pipeline))


def test_the_older_class_is_read_as_what_it_is_now_and_segments(place):
    segmenter = Segmenter.from_pretrained(place(ALPHA), load_config("pixart-alpha", **SMALL), device="cpu")
    assert segmenter.extractor.denoiser.config.sample_size == 64
    assert segmenter(Image.new("RGB", (20, 10), "navy"), "cat, sky").scores.isfinite().all()
    sigma = extractor(place, SIGMA).denoiser
    assert sigma.config.interpolation_scale == 2 and not sigma.use_additional_conditions  # as alpha's at 1024 has


def test_an_older_class_that_is_another_family_is_refused(place, tmp_path):
    """Both are a Transformer2DModel by name; what was loaded is looked at."""
    published.LAYOUTS["dit"] = {"parts": {"transformer": DIT}}
    try:
        folder = published.save("dit", tmp_path / "dit")
    finally:
        del published.LAYOUTS["dit"]
    with pytest.raises(WrongFamily, match="a DiTTransformer2DModel, which is not the PixArt-Sigma transformer"):
        FeatureExtractor((), "pixart-sigma", "cpu", pipeline=place(SIGMA), denoiser=str(folder))


# ---- variants


def test_names_of_files_and_their_variants():
    for name, variant in {
        "model.safetensors": None,
        "diffusion_pytorch_model.fp16.safetensors": "fp16",
        "model.fp16-00001-of-00002.safetensors": "fp16",
        "model.safetensors.index.fp16.json": "fp16",
        "diffusion_pytorch_model-00001-of-00002.bf16.safetensors": "bf16",
        "model-00001-of-00002.safetensors": None,
        "diffusion_pytorch_model.non_ema.safetensors": "non_ema",
        "diffusion_pytorch_model.safetensors.index.json": None,
    }.items():
        assert variants([name]) == {variant}, name
    assert variants(["pytorch_model.fp16.bin", "config.json", "openvino_model.bin", "flax_model.msgpack"]) == set()


@pytest.mark.parametrize(
    ("found", "asked", "dtype", "expected"),
    [
        ([None, "fp16"], "auto", torch.float32, None),
        ([None, "fp16"], "auto", torch.float16, "fp16"),
        ([None, "fp16"], "auto", torch.bfloat16, "fp16"),
        ([None, "fp16", "bf16"], "auto", torch.bfloat16, "bf16"),
        ([None, "bf16"], "auto", torch.float16, None),
        (["fp16"], "auto", torch.float32, "fp16"),
        ([None, "fp16"], None, torch.float16, None),
        ([None], "fp16", torch.float16, None),
        ([None, "non_ema"], "auto", torch.float16, None),
        (["ema"], None, torch.float32, "ema"),
        ([], "auto", torch.float16, None),
    ],
)
def test_which_variant_is_read(found, asked, dtype, expected):
    assert chosen(found, asked, dtype) == expected


def test_16_bit_files_are_read_where_16_bit_is_wanted(tmp_path):
    """Of two kinds of files one is broken: what loads has read the other."""
    folder = published.save(ALPHA, tmp_path / "alpha")
    plain = [path for path in folder.glob("*/*.safetensors") if ".fp16" not in path.name]
    assert len(plain) == 4  # the text encoder's lies in two
    for path in plain:
        path.write_bytes(b"broken")
    given = {"version": "pixart-alpha", "device": "cpu", "img_size": 64, "pipeline": folder}
    for dtype in ("float16", "bfloat16"):
        parts = FeatureExtractor(dtype=dtype, **given).parts
        assert parts["transformer"].dtype == getattr(torch, dtype)
    assert FeatureExtractor(variant="fp16", **given).parts["text_encoder"].dtype == torch.float32
    for wrong in ({}, {"dtype": "float16", "variant": None}):
        with pytest.raises(Exception, match=r"[Ii]nvalid|header|deserializ|broken|transformer"):
            FeatureExtractor(**given, **wrong)


def test_what_exists_in_16_bit_alone_is_read(tmp_path):
    fx = FeatureExtractor((), "1-5", "cpu", img_size=64, pipeline=published.save(SD15, tmp_path / "half", ("fp16",)))
    assert {fx.parts[name].dtype for name in ("unet", "vae", "text_encoder")} == {torch.float32}


def test_a_variant_that_no_part_has(place):
    with pytest.raises(PartMissing, match="no variant 'int4'; expected one of: fp16, non_ema, plain"):
        extractor(place, SD15, variant="int4")


def test_pickles_are_not_read(tmp_path):
    folder = published.save(SD15, tmp_path / "pickled", ("bin",))
    with pytest.raises(PartMissing, match=r"'unet' has pickled weights only \(diffusion_pytorch_model.bin\)"):
        FeatureExtractor((), "1-5", "cpu", pipeline=folder)


def test_a_pipeline_object_in_float16_keeps_what_its_classes_keep(tmp_path):
    folder = FAMILIES["pixart"].save(tmp_path / "tiny")
    pipe = PixArtAlphaPipeline.from_pretrained(folder)
    exact = {name: weight.clone() for name, weight in pipe.text_encoder.named_parameters()}
    cast = FeatureExtractor((), "pixart-alpha", "cpu", "float16", 32, pipe).parts["text_encoder"]
    read = FeatureExtractor((), "pixart-alpha", "cpu", "float16", 32, folder).parts["text_encoder"]
    assert {name: weight.dtype for name, weight in cast.named_parameters()} == {
        name: weight.dtype for name, weight in read.named_parameters()
    }
    kept = {name: weight for name, weight in cast.named_parameters() if weight.dtype == torch.float32}
    assert kept and all(".wo." in name and torch.equal(weight, exact[name]) for name, weight in kept.items())


def test_the_vaes_own_precision(place):
    given = {"version": "1-5", "device": "cpu", "dtype": "float16", "img_size": 64, "pipeline": place(SD15)}
    usual, released = (FeatureExtractor(**given, **own).parts["vae"] for own in ({}, {"vae_dtype": "float16"}))
    assert (usual.dtype, released.dtype) == (torch.float32, torch.float16)  # its config is silent: diffusers upcasts
    encoded = encode_safely(released, torch.zeros(1, 3, 32, 32))
    assert encoded.latent_dist.mean.dtype == torch.float16
    wide = FeatureExtractor(**given | {"dtype": "bfloat16"}, vae_dtype="float32").parts
    assert (wide["unet"].dtype, wide["vae"].dtype) == (torch.bfloat16, torch.float32)


def test_what_a_pipeline_object_has_read_already(tmp_path):
    pipe = PixArtAlphaPipeline.from_pretrained(FAMILIES["pixart"].save(tmp_path / "tiny"))
    for given in ({"variant": "fp16"}, {"denoiser": "there"}, {"vae_dtype": "float16"}):
        with pytest.raises(ExtractorError, match=f"{next(iter(given))} needs a folder or a hub id"):
            FeatureExtractor((), "pixart-alpha", "cpu", pipeline=pipe, **given)


# ---- a second place


def test_a_whole_pipeline_of_two_places_in_16_bit(place, tmp_path):
    family = VERSIONS["pixart-sigma-512"]
    pipe = read_pipeline(place(SIGMA), family, torch.float32, denoiser=place(SIGMA_512))
    assert type(pipe).__name__ == "PixArtSigmaPipeline" and pipe.transformer.config.sample_size == 64
    folder = published.save(ALPHA, tmp_path / "alpha")
    for path in folder.glob("*/*.safetensors"):
        if ".fp16" not in path.name:
            path.write_bytes(b"broken")
    pipe = read_pipeline(str(folder), VERSIONS["pixart-alpha"], torch.float16)
    assert pipe.transformer.dtype == torch.float16


def test_a_denoiser_of_another_place(place, tmp_path):
    config = load_config("pixart-sigma-512", **SMALL)
    assert (config.pipeline, config.denoiser) == (SIGMA, SIGMA_512)
    alone = tmp_path / "transformer-alone"
    shutil.copytree(Path(place(SIGMA_512)) / "transformer", alone)
    for second in (place(SIGMA_512), str(alone)):
        segmenter = Segmenter.from_pretrained(place(SIGMA), config, device="cpu", denoiser=second)
        assert segmenter.extractor.denoiser.config.sample_size == 64
    own = Segmenter.from_pretrained(place(SIGMA), config, device="cpu")
    assert own.extractor.denoiser.config.sample_size == 128


def test_a_place_without_the_other_parts_says_which_has_them(place):
    with pytest.raises(
        PipelineNotFound, match="holds a denoiser only: name it as `denoiser`, and as `pipeline` the one"
    ):
        FeatureExtractor((), "pixart-sigma-512", "cpu", pipeline=place(SIGMA_512))
    assert SIGMA in Repository(SIGMA_512).advice()
    for gone in ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1-base"):
        assert gone.replace("stabilityai", "sd2-community") in Repository(gone).advice()


def test_the_doctor_looks_at_both_places(place, tmp_path):
    assert doctor_places.denoiser(place(SIGMA_512)).ok and doctor_places.denoiser(place(SIGMA)).ok
    (tmp_path / "config.json").write_text("{}")
    assert doctor_places.denoiser(str(tmp_path)).ok
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert "has none" in doctor_places.denoiser(str(tmp_path)).found


def test_a_pipeline_that_is_named_comes_with_its_own_denoiser():
    assert load_config("pixart-sigma-512", pipeline="here").denoiser is None
    assert load_config({"of": "pixart-sigma-512", "pipeline": "here"}).denoiser is None
    assert load_config("pixart-sigma-512", pipeline="here", denoiser="there").denoiser == "there"
    assert load_config(load_config("pixart-sigma-512"), pipeline="here").denoiser is None
    model, choices = load_config("pixart-sigma-512").to_dict(), dict.fromkeys(("model", "dataset", "protocol"), "a")
    values = {"model": model, "run_dir": "r"}
    assert completed(values, choices, ["model.pipeline=here"])["model"]["denoiser"] is None
    both = ["model.pipeline=here", f"model.denoiser={SIGMA_512}"]
    assert completed(values, choices, both)["model"]["denoiser"] == SIGMA_512
    assert completed(values, choices, ["t=1"])["model"] == model


# ---- the hub, without a network


REVISION = "0123456789abcdef" * 2 + "01234567"
CACHED = """
import sys
from goca import Segmenter
from goca.config import load_config
segmenter = Segmenter.from_pretrained(None, load_config("pixart-sigma-512", img_size=64, feat_size=8), "cpu", "float16")
print(segmenter.extractor.denoiser.config.sample_size, segmenter.extractor.denoiser.dtype)
"""


def test_hub_ids_are_found_in_the_cache(place, tmp_path):
    for name in (SIGMA, SIGMA_512):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(place(name), repository / "snapshots" / REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", CACHED], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["64", "torch.float16"], done.stderr[-2000:]
