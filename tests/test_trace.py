"""Tracing a generation: nothing of it changes, every family is understood, and words lie where they are drawn."""

import io

import diffusers
import goca
import numpy as np
import pytest
import tiny
import torch
from diffusion_feature import LayerNotFound, WrongFamily
from families import FAMILIES
from goca.embedded import resolve
from goca.generation.adapters import ConfigNotKnown, config_of
from goca.generation.averages import TraceError, step_rule
from goca.generation.trace import trace
from goca.method.aggregation import Aggregator
from goca.prompts.words import WordNotFound
from PIL import Image

STEPS = {"num_inference_steps": 3, "output_type": "np"}
UNBINNED = {"use_resolution_binning": False}
CALLS = {"pixart": UNBINNED, "hunyuan": UNBINNED, "flux": {"max_sequence_length": 64}}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(name, tmp_path_factory):
    return load(FAMILIES[name].save(tmp_path_factory.mktemp("pipelines") / name))


def load(folder):
    found = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def mini():
    return load(resolve("goca:mini-sd"))


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_it_is_reached_by_its_short_name():
    assert goca.trace is trace


def hooks(pipe):
    """How many hooks its parts have, and which methods are its own instead of its class's."""
    modules = [module for part in pipe.components.values() if hasattr(part, "modules") for module in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules), [
        name for it in (pipe, pipe.image_processor) for name in vars(it) if callable(getattr(type(it), name, None))
    ]


# ---- every family


def test_nothing_changes_and_the_pipeline_is_as_it_was(name, pipe):
    side = FAMILIES[name].picture
    call = {"prompt": "cat, the grass, sky", "height": side, "width": 2 * side, **STEPS, **CALLS.get(name, {})}
    bare = pipe(**call, generator=seeded()).images
    before = hooks(pipe)  # transformers' own stay in the text encoders
    with trace(pipe, FAMILIES[name].config) as t:
        traced = pipe(**call, generator=seeded()).images
    assert (traced == bare).all()
    assert hooks(pipe) == before
    g = FAMILIES[name].feat_size
    attention = t.attention()
    assert attention.shape[:2] == (g, 2 * g) and t.steps == 3
    torch.testing.assert_close(attention.sum(-1), torch.ones(g, 2 * g))
    assert t.words() == ["cat", "grass", "sky"]
    segmentation = t.segment()
    assert segmentation.names == ["cat", "grass", "sky", "background"]
    assert segmentation.label_map().shape == (side, 2 * side)
    word = t.word("Cat")
    assert word.map.shape == (g, 2 * g) and word.map.min() == 0 and word.map.max() == 1
    assert word.overlay().size == (2 * side, side)


def test_only_the_conditional_half_counts(name, pipe, monkeypatch):
    """The mean is that of Aggregators which are fed the whole batch, cut to the half with the prompt."""
    side = FAMILIES[name].picture
    call = {"prompt": ["cat, sky", "grass"], "num_images_per_prompt": 2, "height": side, "width": side, **STEPS}
    with trace(pipe, FAMILIES[name].config) as t:
        pipe(**call, **CALLS.get(name, {}), generator=seeded())
    monkeypatch.setattr("goca.generation.trace.Conditional", lambda aggregator, count, part: aggregator)
    with trace(pipe, FAMILIES[name].config) as whole:
        pipe(**call, **CALLS.get(name, {}), generator=seeded())
    assert t.prompts == ["cat, sky", "cat, sky", "grass", "grass"] and len(t.images) == 4
    halves = 1 if name == "flux" else 2
    assert len(whole.capture.attention_map()) == 4 * halves
    for number in range(4):
        at = number + 4 * (halves - 1)
        torch.testing.assert_close(t.attention(number), whole.capture.attention_map()[at], rtol=1e-4, atol=1e-6)
    assert t.words(2) == ["grass"] and t.word("sky", image=1).image is t.images[1]
    with pytest.raises(TraceError, match="image 4 is not among the 4"):
        t.attention(4)


# ---- which calls of the denoiser count


def test_the_mean_over_chosen_steps(mini):
    def attention(steps):
        with trace(mini, steps=steps) as t:
            mini("tree, sky", num_inference_steps=5, generator=seeded(), output_type="latent")
        return t.attention(), t

    single = [attention([step])[0] for step in range(5)]
    for steps, numbers in ((slice(1, None, 2), (1, 3)), ((0, 4), (0, 4)), ("all", range(5)), (None, range(5))):
        mean, t = attention(steps)
        torch.testing.assert_close(mean, torch.stack([single[number] for number in numbers]).mean(0))
        assert t.steps == len(numbers)
    assert t.images == []
    with pytest.raises(TraceError, match="output_type"):
        t.word("tree").overlay()
    assert t.word("tree").overlay(Image.new("RGB", (64, 64))).size == (64, 64)
    assert t.word("tree")._repr_png_().startswith(b"\x89PNG")  # over white


def test_a_notebook_shows_a_word_s_map_with_its_legend(mini):
    with trace(mini) as t:
        drawn = mini("tree, sky", num_inference_steps=2, generator=seeded()).images[0]
    word = t.word("tree")
    assert repr(word) == "WordMap(tree; 16 x 16)" and repr(word) in word._repr_html_()
    shown = np.asarray(Image.open(io.BytesIO(word._repr_png_())))
    side = 256  # small images are enlarged, so that the legend below can be read
    assert shown.shape[0] > side and shown.shape[1] == side
    plain = word.overlay().resize((side, side), Image.Resampling.NEAREST)
    assert drawn.size == (64, 64) and np.array_equal(shown[:side], np.asarray(plain))


@pytest.mark.parametrize(
    "steps, message",
    [
        (slice(-2, None), "count forward"),
        ("last", "'all'"),
        ([], "step numbers from 0"),
        ([-1], "step numbers from 0"),
    ],
)
def test_steps_that_cannot_be_told(steps, message):
    with pytest.raises(TraceError, match=message):
        step_rule(steps)


def test_a_second_generation_takes_the_place_of_the_first(mini):
    with trace(mini) as t:
        mini("tree, sky", num_inference_steps=2, generator=seeded())
        mini(["ball, sand", "car"], num_inference_steps=3, guidance_scale=1, generator=seeded())
    assert t.prompts == ["ball, sand", "car"] and t.steps == 3
    assert t.attention(1).shape == (16, 16, 16)


def test_true_guidance_of_flux(tmp_path):
    """The negative prompt is encoded and denoised in calls of its own: neither counts."""
    flux = load(tiny.save_flux(tmp_path / "flux"))
    call = {"prompt": "cat", "height": 32, "width": 32, "max_sequence_length": 32, "generator": seeded(), **STEPS}
    with trace(flux, FAMILIES["flux"].config, steps=[0]) as plain:
        flux(**call)
    with trace(flux, FAMILIES["flux"].config, steps=[0]) as guided:
        flux(**call | {"generator": seeded()}, negative_prompt="sky, grass", true_cfg_scale=2.0)
    assert guided.prompts == ["cat"] and guided.step == 2
    torch.testing.assert_close(plain.attention(), guided.attention())


def test_embeddings_in_place_of_a_prompt(mini):
    embeddings = mini.encode_prompt("tree, sky", "cpu", 1, False)[0]
    call = {"prompt_embeds": embeddings, "num_inference_steps": 2, "guidance_scale": 1, "num_images_per_prompt": 2}
    with trace(mini) as t:
        mini(**call, generator=seeded())
    with pytest.raises(TraceError, match="prompt="):
        t.word("tree")
    with trace(mini, prompt="tree, sky") as told:
        mini(**call, generator=seeded())
    assert told.words(1) == ["tree", "sky"]
    assert torch.equal(told.attention(1), t.attention(1))


# ---- what goes wrong


def test_a_generation_that_fails_leaves_the_pipeline_as_it_was(mini, monkeypatch):
    before = hooks(mini)
    monkeypatch.setattr(Aggregator, "feature", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"), trace(mini) as t:
        mini("tree, sky", num_inference_steps=2)
    assert hooks(mini) == before
    with pytest.raises(TraceError, match="none of them was chosen"):
        t.attention()


def test_an_interrupted_generation(mini, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = hooks(mini)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), trace(mini):
        patch.setattr(Aggregator, "attention", interrupt)
        mini("tree, sky", num_inference_steps=2)
    assert hooks(mini) == before
    assert mini("tree, sky", num_inference_steps=1).images


def test_nothing_generated(mini):
    with trace(mini) as t:
        pass
    with pytest.raises(TraceError, match="no step ran"):
        t.word("tree")


def test_a_batch_that_is_not_understood(mini):
    with pytest.raises(TraceError, match="a batch of 2 for 3 images"), trace(mini, prompt=["tree"] * 3):
        mini.unet(torch.zeros(2, 8, 16, 16), 5, torch.zeros(2, 16, 96))


def test_words_that_are_not_there(mini):
    with trace(mini) as t:
        mini("tree, sky", num_inference_steps=1)
    for word in ("dog", "tre", ""):
        with pytest.raises(WordNotFound, match="its words: tree, sky"):
            t.word(word)
    with pytest.raises(WordNotFound, match="'dog'"):
        t.segment("tree, dog")


# ---- which config


def test_the_config_is_found_from_the_pipeline(name, pipe, mini):
    expected = {"sdxl": "sdxl", "pixart": "pixart-alpha", "hunyuan": "hunyuan", "flux": "flux", "sd3": "sd35-medium"}
    assert config_of(mini) == "mini-sd"
    if name in expected:
        assert config_of(pipe) == expected[name]
        with pytest.raises(LayerNotFound):  # a tiny model lacks the published one's layers
            trace(pipe)
    else:
        with pytest.raises(ConfigNotKnown, match="give one: config="):
            trace(pipe)


@pytest.mark.parametrize("width, expected", [(768, "sd15"), (1024, "sd21")])
def test_stable_diffusions_are_told_by_their_text(mini, width, expected):
    pipe = diffusers.StableDiffusionPipeline(
        **{**mini.components, "unet": tiny.unet(cross_attention_dim=width)}, requires_safety_checker=False
    )
    assert config_of(pipe) == expected


def test_a_config_of_another_family(mini):
    with pytest.raises(ConfigNotKnown, match="has no 'transformer'"):
        trace(mini, "flux")
    with pytest.raises(WrongFamily):
        trace(mini, "sdxl")


# ---- a generated scene


@pytest.mark.parametrize("prompt, wanted", [("tree, sky, grass", "tree"), ("house, sand, wall", "house")])
def test_a_word_lies_where_it_is_drawn(mini, prompt, wanted):
    """Colours tell where the model drew what: the sky is blue, sand is not."""
    with trace(mini) as t:
        mini(prompt, num_inference_steps=20, guidance_scale=4, generator=seeded())
    label, names = t.segment().label_map(), prompt.split(", ")
    for number, word in enumerate(names, start=1):
        heat = torch.nn.functional.interpolate(t.word(word).map[None, None], size=(64, 64), mode="bilinear")[0, 0]
        inside = label == number
        assert 0.02 < inside.float().mean() < 0.8
        assert heat[inside].mean() > 2 * heat[~inside].mean()


def test_the_sky_is_where_it_is_blue(mini):
    with trace(mini) as t:
        picture = mini("tree, sky, grass", num_inference_steps=20, guidance_scale=4, generator=seeded()).images[0]
    red, green, blue = torch.from_numpy(np.array(picture)).float().unbind(-1)
    sky = (blue > red + 20) & (blue > green)
    found = t.segment("sky").label_map() == 1
    assert 0.1 < sky.float().mean() < 0.8
    assert (found & sky).sum() / (found | sky).sum() > 0.6
