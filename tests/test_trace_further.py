"""Tracing texts beside the prompt: negative prompts, words that are not in the prompt, and the words at a pixel."""

import dataclasses

import diffusers
import pytest
import torch
from diffusion_feature.attention import Attention
from diffusion_feature.backbone import AttentionLayer
from families import FAMILIES
from goca.embedded import embedded_pipeline
from goca.generation.averages import TraceError
from goca.generation.further import joined
from goca.generation.trace import trace
from goca.prompts.words import WordNotFound
from goca.segmentation import OutsideImage

STEPS = {"num_inference_steps": 2, "output_type": "np"}
CALLS = {"pixart": {"use_resolution_binning": False}}


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture(scope="module", params=["sd", "sdxl", "pixart"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(name, tmp_path_factory):
    return load(name, tmp_path_factory)


def load(name, tmp_path_factory):
    folder = FAMILIES[name].save(tmp_path_factory.mktemp("pipelines") / name)
    found = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def test_further_texts_change_neither_the_image_nor_the_prompts_maps(name, pipe):
    family = FAMILIES[name]
    call = {"prompt": ["cat, grass", "sky"], "negative_prompt": ["wall", "wall"], "height": family.picture}
    call |= {"width": family.picture, **STEPS, **CALLS.get(name, {})}
    bare = pipe(**call, generator=seeded()).images
    with trace(pipe, family.config) as plain:
        pipe(**call, generator=seeded())
    with trace(pipe, family.config, further="dog, red car", negative=True) as t:
        assert (pipe(**call, generator=seeded()).images == bare).all()
    for image in (0, 1):
        assert torch.equal(t.attention(image), plain.attention(image))
        both = t.further.attention(image)
        assert both.shape[-1] > t.attention(image).shape[-1]
        torch.testing.assert_close(both.sum(-1), torch.ones(both.shape[:2]))
        assert t.negative.words(image) == ["wall"]
    assert t.words() == ["cat", "grass"] and t.further.words() == ["cat", "grass", "dog", "red car"]
    assert t.further.words(1) == ["sky", "dog", "red car"]
    assert t.further.word("Red Car").raw.shape == t.word("cat").raw.shape
    assert t.further.segment("cat, dog").names == ["cat", "dog", "background"]


def test_the_negative_prompt_has_the_maps_that_it_has_as_the_prompt(name, pipe):
    family = FAMILIES[name]
    call = {"height": family.picture, "width": family.picture, **STEPS, **CALLS.get(name, {})}
    with trace(pipe, family.config, [0], negative=True) as t:  # until the latents differ
        pipe("cat, sky", negative_prompt="wall, grass", generator=seeded(), **call)
    with trace(pipe, family.config, [0]) as other:
        pipe("wall, grass", negative_prompt="cat, sky", generator=seeded(), **call)
    torch.testing.assert_close(t.negative.attention(), other.attention(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(t.negative.word("grass").map, other.word("grass").map, rtol=1e-3, atol=1e-4)


class Keys(torch.nn.Module):
    """What `joined` uses of an attention module."""

    norm_k = None

    def __init__(self, inputs, inner):
        super().__init__()
        self.to_k = torch.nn.Linear(inputs, inner, bias=False)


@pytest.mark.parametrize("mask", [None, "added", "bool"])
def test_further_tokens_join_the_softmax_and_leave_the_prompts_ratios(mask):
    module = Keys(5, 2 * 3)
    text, further = torch.randn(4, 5, generator=seeded(1)), torch.randn(2, 5, generator=seeded(2))
    key = module.to_k(text).view(1, 4, 2, 3).transpose(1, 2).detach()
    masks = {
        None: None,
        "added": torch.tensor([0, 0, 0, -1e9]).view(1, 1, 1, 4),
        "bool": torch.tensor([True, True, True, False]).view(1, 1, 1, 4),
    }
    parts = {"value": key, "scale": None, "result": None, "grid": (3, 3)}
    keys = {"image_queries": slice(0, 9), "image_keys": None, "text_keys": slice(0, 4)}
    layer = AttentionLayer("block", "cross", module, lambda: torch.eye(6))
    query = torch.randn(1, 2, 9, 3, generator=seeded(3))
    attention = Attention(layer=layer, query=query, key=key, mask=masks[mask], **parts, **keys)
    alone, both = attention.probabilities(), joined(attention, further).probabilities()
    assert both.shape == (1, 2, 9, 6)
    torch.testing.assert_close(both[..., :4] / both[..., :4].sum(-1, keepdim=True), alone)
    same = joined(dataclasses.replace(attention, mask=None), text[1:3]).probabilities()
    torch.testing.assert_close(same[..., 4:], same[..., 1:3])  # a token that is there twice is attended to twice


def test_words_at_a_pixel_of_the_embedded_model():
    pipe = embedded_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with trace(pipe, further="mushroom") as t:
        pipe("star, sky, grass", num_inference_steps=8, generator=seeded(3))
    row, column = divmod(int(t.word("star").map.argmax()), 16)
    x, y = 4 * column + 2, 4 * row + 2
    for maps, count in ((t, 3), (t.further, 4)):
        found = maps.at(x, y)
        assert len(found) == count and found[0][0] == "star"
        assert sum(share for _, share in found) == pytest.approx(1)
        assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)
    assert t.at(5, 5)[0][0] == "sky" and t.at(60, 60)[0][0] == "grass"
    with pytest.raises(OutsideImage, match=r"x in 0..63 and y in 0..63"):
        t.at(64, 0)


def test_what_was_not_asked_for_or_cannot_be(tmp_path_factory):
    sd = load("sd", tmp_path_factory)
    call = {"height": 32, "width": 32, **STEPS}
    with trace(sd, FAMILIES["sd"].config, negative=True) as t:
        sd("cat", guidance_scale=1.0, **call)
    with pytest.raises(TraceError, match="ran without guidance"):
        t.negative.words()
    with pytest.raises(TraceError, match="give them: trace"):
        _ = t.further
    with trace(sd, FAMILIES["sd"].config) as t:
        sd("cat", **call)
    with pytest.raises(TraceError, match="negative=True"):
        _ = t.negative
    with pytest.raises(TraceError, match="contains no words"):
        trace(sd, FAMILIES["sd"].config, further=" , ")
    with pytest.raises(WordNotFound):
        trace(sd, FAMILIES["sd"].config, further="!!!")
    flux = load("flux", tmp_path_factory)
    with pytest.raises(TraceError, match=r"further words are not supported for the Flux.*Stable Diffusion, SDXL or"):
        trace(flux, FAMILIES["flux"].config, further="dog")
    guided = {"negative_prompt": "dog", "true_cfg_scale": 2.0, "max_sequence_length": 64}
    with trace(flux, FAMILIES["flux"].config, negative=True) as t:
        flux("cat", **guided, **call)
    with pytest.raises(TraceError, match="guides in a second call of the denoiser"):
        t.negative.word("dog")
