"""Recorded outputs of every family, number for number, under protocol=released."""

import json

import numpy as np
import pytest
import torch
from diffusion_feature import expand_layers
from diffusion_feature.families.packed import pack, places, unpack
from goca.config import load_config
from goca.method.heads import HEAD_RULES
from goca.method.layers import LAYER_RULES
from goca.method.rescaling import RESCALE_RULES
from goca.prompts import PromptAnnotation
from goca.refine import affinity
from goca.segmenter import Segmenter
from PIL import Image

LAYER, RESCALE = "dot-product similarity", "sum-1 rescaling + per-token renorm+"
WEIGHED = "dot-product w/o clamp"  # the head rule under which layer and rescaling rules were recorded
VANILLA = ("average", "vanilla", "per-token renorm+")

MODELS = {"sd15": "sd15", "pixart_alpha": "pixart-alpha", "flux": "flux"}  # recorded folder -> configs/model
# what is met less closely than 1e-4, since min-max stretches maps that high orders have made nearly constant
LOOSE = {"sd15": {}, "pixart_alpha": {"affinity": 5e-3, "affinity_order2": 1e-3}, "flux": {}}


class Record:
    """The recorded outputs of one model, and a segmenter on its pipeline."""

    def __init__(self, goldens, name):
        folder = goldens / "set1_end_to_end" / name
        self.name, self.facts = name, json.loads((folder / "config.json").read_text())
        self.outputs, self.inputs = (np.load(folder / f"{n}.npz") for n in ("outputs", "inputs"))
        texts = json.loads((folder / "annotations.json").read_text())
        self.annotations = {kind: PromptAnnotation.from_json(text) for kind, text in texts.items()}
        layers = {"cross_layers": "all", "self_layers": self.facts["space_layer"], "ref_layer": self.facts["ref_layer"]}
        sizes = {"img_size": self.facts["img_size"], "feat_size": self.facts["feat_size"]}
        self.config = load_config(MODELS[name], **layers, **sizes, protocol="released")
        self.segmenter = Segmenter.from_pretrained(str(goldens / "pipelines" / name), self.config, device="cpu")
        self.image = Image.open(folder.parent / "image.png")
        self.noise = torch.tensor(self.inputs["noise"])

    @property
    def main(self):
        return self.annotations["main"]

    def close(self, name, found, within=None):
        within = LOOSE[self.name].get(name, 1e-4) if within is None else within
        np.testing.assert_allclose(found, self.outputs[name], rtol=0, atol=within, err_msg=name)


@pytest.fixture(scope="module", params=MODELS)
def record(goldens, request):
    return Record(goldens, request.param)


@pytest.fixture(scope="module")
def sd15(goldens):
    return Record(goldens, "sd15")


@pytest.fixture(scope="module")
def capture(record):
    """One forward, every head and layer rule."""
    return record.segmenter.capture(record.image, record.main, record.noise, None, list(HEAD_RULES), list(LAYER_RULES))


def test_the_config_is_the_recorded_one(record):
    config, ids = record.config, record.segmenter.extractor.layer_ids()
    ours = (config.version, config.t, config.affinity_order, config.head_method)
    assert ours == tuple(record.facts[name] for name in ("version", "t", "order", "head"))
    assert expand_layers("all", ids, "-cross-map") == record.facts["layer"]


# what the denoiser was called with, by the names of its arguments; time and space are given as each model takes them
TEXT = {
    "sd15": ["encoder_hidden_states"],
    "pixart_alpha": ["encoder_hidden_states", "encoder_attention_mask"],
    "flux": ["encoder_hidden_states", "pooled_projections", "txt_ids"],
}
TIMESTEP = {"sd15": 101, "pixart_alpha": 100, "flux": 263.84938}
LATENTS = {"flux": pack}


@torch.no_grad()
def test_recorded_inputs(record):
    extractor = record.segmenter.extractor
    latents = extractor.encode_images([record.image], "sample", [torch.Generator()])
    scheduler = extractor.parts["scheduler"]
    level = extractor.backbone.noise_level(scheduler, record.config.t, "pipeline", tuple(latents.shape[-2:]))
    assert level.timestep == pytest.approx(TIMESTEP[record.name], abs=1e-4)
    text = extractor.backbone.encode_text(extractor.parts, [record.main.caption])
    for argument in TEXT[record.name]:
        recorded = record.inputs[f"model_kwargs/{argument}"]
        np.testing.assert_allclose(text.arguments[argument], recorded, rtol=0, atol=3e-5, err_msg=argument)
    noised = LATENTS.get(record.name, torch.clone)(level.signal * latents + level.noise * record.noise)
    np.testing.assert_allclose(noised, record.inputs["latents"], rtol=0, atol=1e-5)


def test_tokens_of_flux(goldens):
    inputs = np.load(goldens / "set1_end_to_end" / "flux" / "inputs.npz")
    latents = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(latents), 4, 6), latents)
    np.testing.assert_array_equal(places(16, 16), inputs["model_kwargs/img_ids"])


@pytest.mark.parametrize("rule", HEAD_RULES)
def test_recorded_heads(record, capture, rule):
    record.close(f"head={rule}", record.segmenter.rescale(capture.attention_map(rule, LAYER)[0], record.main, RESCALE))


@pytest.mark.parametrize("rule", LAYER_RULES)
def test_recorded_layers(record, capture, rule):
    record.close(f"layer={rule}", record.segmenter.rescale(capture.attention_map(WEIGHED, rule)[0], record.main))


@pytest.mark.parametrize("rule", [rule for rule in RESCALE_RULES if "ranking" not in rule])  # which was not recorded
def test_recorded_rescaling(record, capture, rule):
    attention = capture.attention_map(WEIGHED, LAYER)[0]
    record.close(f"rescale={rule}", record.segmenter.rescale(attention, record.main, rule))


def test_recorded_maps(record, capture):
    grid, config = record.config.feat_size, record.config
    attention, space = capture.attention_map(config.head_method, LAYER)[0], capture.space_map()[0]
    step = grid // len(record.outputs["space_attn"])  # of sd15 every second row and column of queries is kept
    record.close("space_attn", space.view(grid, grid, grid, grid)[::step, ::step], 1e-5)
    scores = record.segmenter.rescale(attention, record.main)
    record.close("default", scores, 5e-5)
    record.close("affinity_order1", affinity(scores, space, 1))
    record.close("affinity_order2", affinity(scores, space, 2))
    record.close("affinity", affinity(scores, space, config.affinity_order))
    head_rule, layer_rule, rescale_rule = VANILLA
    vanilla = record.segmenter.rescale(capture.attention_map(head_rule, layer_rule)[0], record.main, rescale_rule)
    record.close("vanilla", vanilla)


def test_recorded_outputs_from_the_picture(record):
    record.close("affinity", record.segmenter(record.image, record.main, record.noise).scores)
    record.close("default", record.segmenter.score_maps(record.image, record.main, record.noise))


@pytest.mark.parametrize("name", MODELS)
def test_values_on_the_way_to_the_recorded_outputs(full_record, name):
    record = Record(full_record, name)
    debug = np.load(full_record / "set1_end_to_end" / name / "debug.npz")
    head_rule = record.config.head_method
    rules = [rule for rule in LAYER_RULES if rule != "vanilla"]
    capture = record.segmenter.capture(record.image, record.main, record.noise, None, [head_rule], rules)
    np.testing.assert_allclose(capture.attention_map(head_rule, LAYER)[0], debug["aggregated_attn"], rtol=0, atol=3e-5)
    for rule in rules:
        for block, weight in zip(capture.plan.blocks, capture.layer_weights(rule)[0]):
            assert float(weight) == pytest.approx(float(debug[f"layer_weight/{rule}/{block}-cross-map"]), abs=1e-5)


# ---- recorded with one model only


def test_recorded_background_objects_apart(sd15):
    apart = Segmenter(sd15.segmenter.extractor, load_config(sd15.config, keep_all_objects=True))
    sd15.close("keep_all_objects", apart.score_maps(sd15.image, sd15.main, sd15.noise))


@pytest.mark.parametrize("name", ["no_background", "multi_token", "single_class", "empty_class_tokens", "no_class"])
def test_recorded_annotations(sd15, name):
    annotation = sd15.annotations[name]
    rules = (WEIGHED, "average"), (LAYER, "vanilla")
    found = sd15.segmenter.capture(sd15.image, annotation, sd15.noise, None, *rules)
    scores = sd15.segmenter.rescale(found.attention_map()[0], annotation)
    sd15.close(f"variant={name}", scores)
    sd15.close(f"variant={name}/affinity", sd15.segmenter.refine(scores, found), 2e-4)
    head_rule, layer_rule, rescale_rule = VANILLA
    vanilla = sd15.segmenter.rescale(found.attention_map(head_rule, layer_rule)[0], annotation, rescale_rule)
    sd15.close(f"variant={name}/vanilla", vanilla)
