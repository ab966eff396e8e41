"""Pipelines that call their denoiser in their own way: the right tokens of the right half are traced, or it is said."""

import diffusers
import pytest
import tiny
import torch
from diffusers import (
    FluxKontextPipeline,
    HeunDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusion_feature import AttentionNotSeen
from families import FAMILIES
from goca.generation.averages import TraceError
from goca.generation.trace import trace
from goca.guidance import SemanticGuidance
from goca.guidance.rate import GuidanceError
from goca.prompts.words import WordNotFound
from PIL import Image

CONFIG = tiny.SD_CONFIG
CALL = {"num_inference_steps": 2, "output_type": "np"}
SQUARE = {"height": 32, "width": 32}


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tiny.save_sd(tmp_path_factory.mktemp("pipelines") / "sd")
    return quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder, requires_safety_checker=False))


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return quiet(diffusers.FluxPipeline.from_pretrained(tiny.save_flux(tmp_path_factory.mktemp("pipelines") / "flux")))


class Spy:
    """What the aggregator was handed, whatever it made of it."""

    def __init__(self, monkeypatch):
        from goca.method.aggregation import Aggregator

        self.attentions, take = [], Aggregator.attention
        monkeypatch.setattr(Aggregator, "attention", lambda own, a: (self.attentions.append(a), take(own, a)))


# ---- Flux Kontext: an image to look at beside the one that is made


@pytest.mark.parametrize("reference", [(32, 32), (64, 32)], ids=str)
def test_the_tokens_of_the_image_that_is_made(flux, reference, monkeypatch):
    monkeypatch.setattr("diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS", [reference])
    kontext = quiet(
        FluxKontextPipeline(
            **{
                name: flux.components[name]
                for name in (
                    "scheduler",
                    "vae",
                    "text_encoder",
                    "tokenizer",
                    "text_encoder_2",
                    "tokenizer_2",
                    "transformer",
                )
            }
        )
    )
    call = {"prompt": "cat, grass", "max_area": 32 * 32, "max_sequence_length": 64, **SQUARE, **CALL}
    spy = Spy(monkeypatch)
    with trace(kontext, FAMILIES["flux"].config, steps=[0]) as t:
        made = kontext(image=Image.new("RGB", reference, "red"), **call, generator=seeded()).images
    assert {(a.image_queries.start, a.image_queries.stop) for a in spy.attentions} == {(64, 64 + 16)}
    assert {(a.text_keys.start, a.text_keys.stop) for a in spy.attentions} == {(0, 64)}
    beside = spy.attentions[0].key.shape[2] - 64 - 16
    assert beside == reference[0] * reference[1] // 64 and made.shape[1:3] == (32, 32)
    assert t.words() == ["cat", "grass"] and t.word("cat").map.shape == (4, 4)


# ---- perturbed-attention guidance


@pytest.fixture
def pag(sd):
    components = {name: part for name, part in sd.components.items() if name != "image_encoder"}
    return quiet(StableDiffusionPAGPipeline(**components, requires_safety_checker=False, pag_applied_layers=["mid"]))


@pytest.mark.parametrize("scale", [1.0, 5.0], ids=["alone", "with-guidance"])
def test_the_perturbed_part_does_not_count(pag, sd, scale):
    """The first step's attention is that of the plain pipeline, whatever the guidance."""
    call = {"prompt": ["cat, grass", "sky"], **SQUARE, **CALL}
    with trace(sd, CONFIG, steps=[0]) as plain:
        sd(**call, guidance_scale=1.0, generator=seeded())
    with trace(pag, CONFIG, steps=[0]) as t:
        pag(**call, guidance_scale=scale, pag_scale=3.0, generator=seeded())
    for image in range(2):
        torch.testing.assert_close(t.attention(image), plain.attention(image), rtol=1e-4, atol=1e-5)
    sd.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor2_0())


@pytest.mark.parametrize(
    "name, kind, layer, scale",
    [
        ("sdxl", "StableDiffusionXLPAGPipeline", "mid", 1.0),
        ("sdxl", "StableDiffusionXLPAGPipeline", "mid", 5.0),
        ("hunyuan", "HunyuanDiTPAGPipeline", "blocks.1", 5.0),
    ],
)
def test_the_perturbed_part_of_other_families(name, kind, layer, scale, tmp_path):
    family = FAMILIES[name]
    plain = quiet(diffusers.DiffusionPipeline.from_pretrained(family.save(tmp_path / name)))
    more = {"requires_safety_checker": False} if name == "hunyuan" else {}
    parts = {part: value for part, value in plain.components.items() if value is not None or more}
    call = {"prompt": "cat, grass", "height": family.picture, "width": family.picture, **CALL}
    call |= {"use_resolution_binning": False} if name == "hunyuan" else {}
    with trace(plain, family.config, steps=[0]) as expected:
        plain(**call, guidance_scale=1.0, generator=seeded())
    perturbed = quiet(getattr(diffusers, kind)(**parts, **more, pag_applied_layers=[layer]))
    with trace(perturbed, family.config, steps=[0]) as t:
        perturbed(**call, guidance_scale=scale, pag_scale=3.0, generator=seeded())
    torch.testing.assert_close(t.attention(), expected.attention(), rtol=1e-4, atol=1e-5)


def test_perturbed_attention_that_is_computed_twice(tmp_path):
    """SD 3's: refused, and without it the pipeline can be traced."""
    plain = quiet(diffusers.DiffusionPipeline.from_pretrained(tiny.save_sd3(tmp_path / "sd3")))
    parts = {part: value for part, value in plain.components.items() if value is not None}
    perturbed = quiet(diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"]))
    with pytest.raises(AttentionNotSeen, match="`pag_scale=0`"), trace(perturbed, FAMILIES["sd3"].config):
        perturbed("cat, grass", pag_scale=3.0, **SQUARE, **CALL)
    plain.transformer.set_attn_processor(JointAttnProcessor2_0())  # diffusers leaves its own after an error
    with trace(perturbed, FAMILIES["sd3"].config) as t:
        perturbed("cat, grass", pag_scale=0, **SQUARE, **CALL)
    assert t.words() == ["cat", "grass"]


def test_a_negative_prompt_that_is_the_prompt(sd):
    with trace(sd, CONFIG, steps=[0]) as plain:
        sd("cat, grass", guidance_scale=1.0, **SQUARE, **CALL, generator=seeded())
    with trace(sd, CONFIG, steps=[0]) as t:
        sd("cat, grass", negative_prompt="cat, grass", **SQUARE, **CALL, generator=seeded())
    torch.testing.assert_close(t.attention(), plain.attention(), rtol=1e-4, atol=1e-5)


# ---- views of a larger picture


@pytest.mark.parametrize("width", [512, 640])
def test_a_panorama_is_refused(sd, width):
    from diffusers import StableDiffusionPanoramaPipeline

    components = {name: part for name, part in sd.components.items() if name != "image_encoder"}
    pipe = quiet(StableDiffusionPanoramaPipeline(**components, requires_safety_checker=False))
    call = {"prompt": "cat, grass", "height": 256, "generator": seeded(), **CALL}  # views of 64 latent pixels
    with trace(pipe, CONFIG) as t:
        made = pipe(**call, width=width).images
    assert made.shape[1:3] == (256, width)
    with pytest.raises(TraceError, match=f"are 256 x {width}, but the denoiser saw parts of 256 x 256"):
        t.word("cat")


def test_two_calls_at_one_timestep_are_no_views(sd):
    parts = sd.components | {"scheduler": HeunDiscreteScheduler.from_config(sd.scheduler.config)}
    heun = quiet(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False))
    with trace(heun, CONFIG) as t:
        heun("cat, grass", **SQUARE, **CALL | {"num_inference_steps": 3}, generator=seeded())
    assert t.steps == 3 and t.word("cat").map.shape == (8, 8)


# ---- how many text tokens there are


@pytest.mark.parametrize("length", [8, 64, 300])
def test_the_call_says_how_many_text_tokens_there_are(flux, length):
    prompt = "cat, dog, grass, wall, sky"  # a word and a comma are two tokens: the eighth is the end's
    with trace(flux, FAMILIES["flux"].config, steps=[0]) as t:
        flux(prompt, max_sequence_length=length, **SQUARE, **CALL, generator=seeded())
    assert t.attention().shape[-1] == length
    if length == 8:
        assert t.words() == ["cat", "dog", "grass", "wall"]
        with pytest.raises(WordNotFound, match="'sky' was cut off"):
            t.word("sky")
    else:
        assert t.words() == prompt.split(", ") and bool(t.word("sky").map.isfinite().all())


def test_a_pixart_that_is_given_more_tokens(tmp_path):
    pipe = quiet(diffusers.DiffusionPipeline.from_pretrained(tiny.save_pixart(tmp_path / "pixart")))
    call = {"use_resolution_binning": False, "clean_caption": False, **SQUARE, **CALL}
    with trace(pipe, FAMILIES["pixart"].config, steps=[0]) as t:
        pipe("cat, " * 70 + "sky", max_sequence_length=200, **call)
    assert t.word("sky").tokens == (140,)


def test_embeddings_of_another_length(sd):
    """As tools for weighted or long prompts make them: which token is whose is not known."""
    embeddings = sd.encode_prompt("cat, sky", "cpu", 1, False)[0].repeat(1, 2, 1)
    with trace(sd, CONFIG, prompt="cat, sky") as t:
        sd(prompt_embeds=embeddings, guidance_scale=1.0, **SQUARE, **CALL)
    assert t.attention().shape[-1] == 2 * tiny.TEXT
    with pytest.raises(TraceError, match="was given 24 text tokens where the tokenizer makes 12"):
        t.word("cat")


# ---- the plain ones that end or begin elsewhere


def test_image_to_image(sd):
    parts = sd.components | {"safety_checker": None, "feature_extractor": None}
    pipe = quiet(diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))
    call = {"image": Image.new("RGB", (32, 32), "red"), "strength": 0.5, "output_type": "np"}
    bare = pipe("cat, grass", **call, num_inference_steps=6, generator=seeded()).images
    with trace(pipe, CONFIG) as t:
        made = pipe("cat, grass", **call, num_inference_steps=6, generator=seeded()).images
    assert (made == bare).all() and t.steps == 3 and t.words() == ["cat", "grass"]


def test_guidance_that_ends_on_the_way(sd):
    """The batch is halved between two steps: what is traced is the half with the prompt before, all after."""

    def end(pipe, step, timestep, given):
        if step == 0:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    dynamic = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    call = {"prompt": "cat, grass", **SQUARE, **CALL}
    with trace(sd, CONFIG, steps=[0]) as usual:
        sd(**call, generator=seeded())
    with trace(sd, CONFIG, steps=[0]) as first:
        sd(**call, **dynamic, generator=seeded())
    with trace(sd, CONFIG) as both:
        sd(**call, **dynamic, generator=seeded())
    torch.testing.assert_close(first.attention(), usual.attention())
    assert both.steps == 2 and both.attention().shape == usual.attention().shape


def test_two_prompts_on_the_same_tokens(tmp_path):
    """SDXL's encoders share their tokens' places: with another prompt_2 a token stands for two words."""
    pipe = quiet(diffusers.DiffusionPipeline.from_pretrained(tiny.save_sdxl(tmp_path / "sdxl")))
    with trace(pipe, FAMILIES["sdxl"].config) as t:
        pipe("cat, grass", prompt_2="cat, grass", **SQUARE, **CALL)
    assert t.words() == ["cat", "grass"]
    with trace(pipe, FAMILIES["sdxl"].config) as t:
        pipe("cat, grass", prompt_2="sky", **SQUARE, **CALL)
    with pytest.raises(TraceError, match="prompt_2 differs from prompt"):
        t.word("cat")
    guided = SemanticGuidance(pipe, FAMILIES["sdxl"].config, "cat, grass")
    with pytest.raises(GuidanceError, match="prompt_2 is 'sky'"), guided:
        pipe("cat, grass", prompt_2="sky", **SQUARE, **CALL)


# ---- denoisers with more channels


def test_an_inpainting_denoiser_is_traced(sd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = tiny.unet(in_channels=9, out_channels=4).eval()
    pipe = quiet(StableDiffusionInpaintPipeline(**sd.components | {"unet": unet}, requires_safety_checker=False))
    given = {"image": Image.new("RGB", (32, 32), "red"), "mask_image": Image.new("L", (32, 32), 255)}
    with trace(pipe, CONFIG) as t:
        pipe("cat, grass", **given, **SQUARE, **CALL, strength=1.0)
    assert t.words() == ["cat", "grass"]
