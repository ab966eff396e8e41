"""Learnt tokens (textual inversion), tags with underscores and weights in prompts: every word keeps its own tokens."""

import warnings

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusion_feature.text import written_out
from families import FAMILIES
from goca.generation.trace import trace
from goca.guidance import SemanticGuidance
from goca.prompts import CaptionError, LearntTokens, PromptWeights, annotate, blanked
from goca.prompts.words import PromptWords
from goca.segmenter import Segmenter
from PIL import Image

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8))
FOUR = {"<toy>": 4, "<*>": 2, "sks": 1}  # learnt tokens and their vectors
TEXTS = ["a <toy> on grass, cat", "<*> cat", "sks", "cat, sky", "a <toy>, <*>, <toy>", "<toy>"]


def load(folder, learnt=FOUR):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for number, (name, vectors) in enumerate(learnt.items()):
        state = torch.randn(vectors, 16, generator=torch.Generator().manual_seed(number))
        encoders = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
        for encoder, tokenizer in encoders if type(pipe).__name__.startswith("StableDiffusionXL") else encoders[:1]:
            given = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
            pipe.load_textual_inversion({name: state}, token=name, **given)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return load(tiny.save_sd(tmp_path_factory.mktemp("pipelines") / "sd"))


def pieces(tokenizer, positions, text):
    ids = tokenizer(text)["input_ids"]
    return tokenizer.convert_ids_to_tokens([ids[at] for at in positions])


TOY = ["<toy>", "<toy>_1", "<toy>_2", "<toy>_3"]


@pytest.mark.parametrize("text", TEXTS)
def test_learnt_tokens_are_written_out_as_the_pipeline_does_it(pipe, text):
    expected = pipe.maybe_convert_prompt(text, pipe.tokenizer)
    learnt = LearntTokens([pipe.tokenizer])
    assert written_out(pipe.tokenizer, [text]) == [expected]
    for prompt in (text, learnt.hide(text)):
        written, sources = learnt.written_out(prompt, pipe.tokenizer)
        assert written == expected
        assert sources is None or len(sources) == len(written)
    assert learnt.show(learnt.hide(text)) == text


def test_words_after_a_learnt_token_keep_their_own_tokens(pipe):
    words = PromptWords("a <toy> on grass, <*>, cat", pipe.tokenizer, max_length=40)
    written = pipe.maybe_convert_prompt(words.prompt, pipe.tokenizer)
    assert list(words.content) == ["<toy>", "grass", "<*>", "cat"]
    assert pieces(pipe.tokenizer, words.positions("<toy>"), written) == TOY
    assert pieces(pipe.tokenizer, words.positions("grass"), written) == ["grass</w>"]
    assert pieces(pipe.tokenizer, words.positions("<*>"), written) == ["<*>", "<*>_1"]
    assert pieces(pipe.tokenizer, words.positions("CAT"), written) == ["cat</w>"]


@pytest.mark.parametrize("name", ["<toy>", "<Toy>"])  # capitals are as free as in other class names
@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_a_learnt_token_can_be_a_class(pipe, protocol, name):
    annotation = annotate(
        "grass, (<toy>, cat), <*>",
        [[], [name], ["grass"]],
        [1, 2],
        pipe.tokenizer,
        max_length=40,
        add_background=False,
        add_missing=False,
        protocol=protocol,
    )
    assert annotation.caption == "grass, <toy>, cat, <*>"
    written = pipe.maybe_convert_prompt(annotation.caption, pipe.tokenizer)
    assert pieces(pipe.tokenizer, annotation.existent_objects[1], written) == [*TOY, "cat</w>"]
    assert pieces(pipe.tokenizer, annotation.existent_objects[2], written) == ["grass</w>"]
    assert pieces(pipe.tokenizer, annotation.background_objects[0], written) == ["<*>", "<*>_1"]


def test_tokens_written_inside_one_another_are_refused(pipe):
    with pytest.raises(CaptionError, match="'<toy>' and '<toy>_1' contain one another"):
        PromptWords("<toy>_1, <toy>", pipe.tokenizer)


@pytest.mark.parametrize("save", [tiny.save_sd, tiny.save_sdxl, tiny.save_flux], ids=["sd", "sdxl", "flux"])
def test_a_segmenter_encodes_what_the_pipeline_encodes(save, tmp_path):
    pipe = load(save(tmp_path / "pipeline"), {"<toy>": 3})
    family = {tiny.save_sd: "sd", tiny.save_sdxl: "sdxl", tiny.save_flux: "flux"}[save]
    if family == "flux":  # its T5 is what is attended to
        pipe.tokenizer_2.add_tokens(["<toy>", "<toy>_1", "<toy>_2"])
        pipe.text_encoder_2.resize_token_embeddings(len(pipe.tokenizer_2))
    segmenter = Segmenter.from_pretrained(pipe, FAMILIES[family].config)
    annotation, names = segmenter.read_prompt("<toy>, grass")
    assert names == {1: "<toy>", 2: "grass"} and annotation.caption == "<toy>, grass"
    first = min(annotation.existent_objects[1])
    assert annotation.existent_objects == {1: [first, first + 1, first + 2], 2: [first + 4 + (family == "flux")]}
    encoded = segmenter.extractor.backbone.encode_text(segmenter.extractor.parts, [annotation.caption])
    more = {} if family == "flux" else {"do_classifier_free_guidance": False, "num_images_per_prompt": 1}
    more |= {} if family == "sd" else {"prompt_2": None}
    expected = pipe.encode_prompt("<toy>, grass", device="cpu", **more)
    torch.testing.assert_close(encoded.arguments["encoder_hidden_states"], expected[0])
    for ask in ("open", "complete"):
        assert segmenter(PICTURE, "<TOY>, grass", ask=ask).names == ["<toy>", "grass", "background"]


def test_tracing_and_guidance_read_learnt_tokens(pipe):
    with trace(pipe, tiny.SD_CONFIG) as t:
        pipe("<toy>, grass", num_inference_steps=1, height=32, width=32, output_type="np")
    assert t.words() == ["<toy>", "grass"]
    assert t.word("<toy>").tokens == (1, 2, 3, 4) and t.word("grass").tokens == (6,)
    assert t.segment("<toy>").names == ["<toy>", "background"]
    guidance = SemanticGuidance(pipe, tiny.SD_CONFIG, "<toy>, grass")
    assert guidance.tokens[0].words == (1, 2, 3, 4, 5, 6)


# ---- underscores


def test_words_with_underscores(pipe):
    words = PromptWords("cat_wall, sky_", pipe.tokenizer)
    assert list(words.content) == ["cat_wall", "sky"] and not words.lost
    ids = pieces(pipe.tokenizer, words.positions("cat_wall"), words.prompt)
    assert ids == ["cat</w>", "wall</w>"]
    assert words.positions("cat wall") == words.positions("cat_wall")
    assert words.positions("cat") + words.positions("wall") == words.positions("cat_wall")
    assert words.content_tokens == sorted(words.positions("cat_wall") + words.positions("sky"))


# ---- weights


@pytest.mark.parametrize(
    "prompt, read",
    [
        ("(cat:1.3), [sky]", "(cat    ), [sky]"),
        ("((cat: .8), sky:2)", "((cat    ), sky  )"),
        ("(cat)1.3, sky", "(cat)   , sky"),
        ("[cat:-1]", "[cat   ]"),
        ("a clock (at 3:30), cat:2, wall 1.5", "a clock (at 3:30), cat:2, wall 1.5"),
        ("(cat:1.3, sky", "(cat:1.3, sky"),
        ("cat:1.3)", "cat:1.3)"),
    ],
)
def test_what_is_a_weight(prompt, read):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWeights)
        assert blanked(prompt) == read


def test_weights_are_read_over_and_that_is_said(pipe):
    with pytest.warns(PromptWeights, match="':1.3', are not applied"):
        words = PromptWords("(cat:1.3), [sky]", pipe.tokenizer)
    assert list(words.content) == ["cat", "sky"]
    segmenter = Segmenter.from_pretrained(pipe, tiny.SD_CONFIG)
    with pytest.warns(PromptWeights):
        assert segmenter.read_prompt("(cat:1.3), [sky]") == segmenter.read_prompt("cat, sky")
    with pytest.warns(PromptWeights):
        guidance = SemanticGuidance(pipe, tiny.SD_CONFIG, "(cat:1.3)")
    tokens = pipe.tokenizer("(cat:1.3)")["input_ids"]
    assert pieces(pipe.tokenizer, guidance.tokens[0].words, "(cat:1.3)") == ["(</w>", "cat</w>", ")</w>"], tokens
