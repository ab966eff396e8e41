"""Denoisers at their published size on the meta device: the settings' layers are there, and little of them is held."""

import diffusers
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusion_feature import WrongFamily, expand_layers
from diffusion_feature.attention import CHUNK_BYTES, LAYOUTS, Attention
from diffusion_feature.backbone import JOINT
from diffusion_feature.extractor import refuse_unnamed
from diffusion_feature.families import VERSIONS
from goca.config import load_config
from goca.method.aggregation import Aggregator, Plan
from sizes import CALLED, SIZES

# text tokens, where they are not as many for every prompt, or more than those of its words
TEXT = {"sd35-large": 77 + 256, "kandinsky5": 64, "cogview4": 64, "lumina2": 64, "qwen-image": 64, "z-image": 64}
TEXT |= {"hunyuan-image": 1000 + 128}
SHARE = 30  # of keeping every map of every head
FEW = 20  # the same for SANA, whose maps are those of 20 heads on 32 x 32: their mean over heads alone takes as much


@pytest.fixture(scope="module", params=SIZES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def denoiser(name):
    kind, settings = SIZES[name]
    with torch.device("meta"):
        return getattr(diffusers, kind)(**settings)


def test_parameters_are_those_of_the_name(name, denoiser):
    if name not in CALLED:
        pytest.skip("its published size is not known")
    counted = sum(weight.numel() for weight in denoiser.parameters()) / 1e9
    assert counted == pytest.approx(CALLED[name], rel=0.07)


def test_the_config_s_layers_are_there(name, denoiser):
    config = load_config(name)
    family = VERSIONS[config.version]
    assert family.kind == type(denoiser).__name__ and family.accepts(denoiser)
    ids = [layer_id for layer in family.layers(denoiser) for layer_id in layer.maps]
    features = family.features(denoiser)
    assert len(ids) == len(set(ids)) and not set(ids) & set(features)
    every = [*ids, *features]
    assert expand_layers(config.cross_layers, every, "-cross-map")
    own = expand_layers(config.self_layers, every, "-self-map")
    assert len(own) == (0 if name == "sana" else 2)
    reference = expand_layers([config.ref_layer], every, "")
    assert reference[0] in features
    assert all(
        layer.out_proj().shape[1] == heads_of(layer.module)[2] for layer in family.layers(denoiser)[:: len(ids) - 1]
    )


def test_attention_without_maps_is_named(name, denoiser):
    """Every attention module has layer ids or is left alone by name; without those names the model is refused."""
    family = VERSIONS[load_config(name).version]
    named = [layer.module for layer in family.layers(denoiser)]
    refuse_unnamed(denoiser, named, family.left_alone)
    if family.left_alone:
        with pytest.raises(WrongFamily, match="is an attention module without a layer id in this family"):
            refuse_unnamed(denoiser, named)
    with pytest.raises(WrongFamily):
        refuse_unnamed(denoiser, named[1:], family.left_alone)


def heads_of(module):
    """Heads, width of one, and width of all."""
    heads = getattr(module, "heads", None) or module.num_heads
    width = getattr(module, "inner_dim", None) or module.to_query.out_features
    return heads, width // heads, width


def test_what_the_method_holds_of_an_image_of_1024_pixels(name, denoiser, monkeypatch):
    """By shape: the layers pass as in a forward, on the meta device, and nothing has values; in chunks as on a CPU."""
    monkeypatch.setitem(CHUNK_BYTES, "meta", CHUNK_BYTES["cpu"])
    config = load_config(name)
    family = VERSIONS[config.version]
    layers, features = family.layers(denoiser), family.features(denoiser)
    ids = [layer_id for layer in layers for layer_id in layer.maps] + list(features)
    side = 32 if name in ("hunyuan-image", "sana") else 64
    grid, text = (side, side), TEXT.get(name, family.prompt[0][1])
    blocks = [each.removesuffix("-cross-map") for each in expand_layers(config.cross_layers, ids, "-cross-map")]
    spaces = [each.removesuffix("-self-map") for each in expand_layers(config.self_layers, ids, "-self-map")]
    reference = expand_layers([config.ref_layer], ids, "")[0]
    rules = (config.head_method,), (config.layer_method,)
    aggregator = Aggregator(Plan(tuple(blocks), tuple(spaces), grid, *rules, reference))
    everything = 0
    for layer in layers:
        heads, width, _ = heads_of(layer.module)
        joint = layer.layout in JOINT
        queries = side * side + joint * text
        keys = queries if layer.layout != "cross" else text
        q, k = (torch.empty(1, heads, count, width, device="meta", dtype=torch.bfloat16) for count in (queries, keys))
        where = LAYOUTS[layer.layout](side * side, keys)
        aggregator.attention(Attention(layer, q, k, k, None, None, q, grid, **where))
        everything += 4 * heads * side * side * keys
        if reference.startswith(f"{layer.block}-") and aggregator.compared and layer.layout != "cross":
            feature = torch.empty(1, heads * width, *grid, device="meta", dtype=torch.bfloat16)
            aggregator.feature(reference, feature)
    assert not aggregator.deferred
    if name == "sana":
        assert aggregator.held_bytes * FEW <= everything
    else:
        assert aggregator.peak_bytes * SHARE < everything


# ---- the rule of timesteps


def ratio(scheduler, t):
    a = float(scheduler.alphas_cumprod[t])
    return ((1 - a) / a) ** 0.5  # noise : signal


def test_timesteps_have_the_noise_of_stable_diffusion_at_100(name):
    config = load_config(name)
    sd15 = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    flow = name != "cogview3-plus"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else CogVideoXDDIMScheduler()
    noise_level = VERSIONS[config.version].noise_level

    def distance(t):
        level = noise_level(scheduler, t, "nominal", (128, 128))
        return abs(level.noise / level.signal - ratio(sd15, 100))

    assert min(range(1, 999), key=distance) == config.t
