"""Encodings of prompts are kept, and never outlive what made them."""

import dataclasses

import diffusers
import pytest
import torch
from diffusion_feature import FeatureExtractor
from diffusion_feature import text_cache as caches
from diffusion_feature.text_cache import TextCache, probe_of

PROMPT = "cat, grass, sky"


@pytest.fixture
def pipe(tiny_sd):
    return diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd, requires_safety_checker=False)


class Counted:
    """An extractor's encodings, and how many of them were made."""

    def __init__(self, pipe):
        self.extractor, self.made, self.cache = FeatureExtractor((), "1-5", pipeline=pipe), 0, TextCache("unet")

    def encode(self, parts, prompts):
        self.made += 1
        return self.extractor.backbone.encode_text(parts, prompts)

    @torch.no_grad()
    def states(self, *prompts):
        return self.cache(self.encode_, self.extractor.parts, list(prompts)).arguments["encoder_hidden_states"]

    @property
    def encode_(self):
        self._bound = getattr(self, "_bound", self.encode)
        return self._bound

    @torch.no_grad()
    def fresh(self, *prompts):
        return self.extractor.backbone.encode_text(self.extractor.parts, list(prompts)).arguments[
            "encoder_hidden_states"
        ]


def test_a_prompt_is_encoded_once(pipe):
    counted = Counted(pipe)
    assert counted.states(PROMPT) is counted.states(PROMPT)
    assert counted.made == 1
    counted.states(PROMPT, PROMPT)  # another batch
    assert counted.made == 2


def embedding(encoder):
    return encoder.get_input_embeddings().weight


def in_place(pipe):
    with torch.no_grad():
        embedding(pipe.text_encoder).mul_(1.5)


def through_data(pipe):
    embedding(pipe.text_encoder).data.mul_(1.5)


def another_type(pipe):
    pipe.text_encoder.to(torch.bfloat16)


def another_denoiser_type(pipe):
    pipe.unet.to(torch.float64)


def a_hook(pipe):
    pipe.text_encoder.register_forward_hook(lambda module, args, output: None)


def a_longer_vocabulary(pipe):
    pipe.tokenizer.add_tokens(["grass,"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))


def an_adapter(pipe):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(config, "one")


def merged_and_unloaded(pipe):
    """As diffusers' fuse_lora and unload_lora_weights leave it: the weights' tensors stay, their values change."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        pipe.text_encoder = peft.get_peft_model(pipe.text_encoder, config).merge_and_unload()


CHANGES = (in_place, through_data, another_type, another_denoiser_type, a_longer_vocabulary, an_adapter)


@pytest.mark.parametrize("change", [*CHANGES, merged_and_unloaded])
def test_a_change_is_noticed(pipe, change):
    counted = Counted(pipe)
    before = counted.states(PROMPT)
    change(pipe)
    after, fresh = counted.states(PROMPT), counted.fresh(PROMPT)
    assert torch.equal(after, fresh)
    assert after.dtype != before.dtype or after.shape != before.shape or not torch.equal(before, after)


def a_special_weight(pipe):
    """As of quantised models, which cannot be looked into."""

    class Special(torch.nn.Parameter):
        def view(self, *shape):
            raise NotImplementedError

    encoder = pipe.text_encoder
    encoder.get_input_embeddings().weight = Special(embedding(encoder).detach())


def test_what_cannot_be_watched_switches_it_off(pipe):
    for change in (a_special_weight, a_hook, an_adapter):
        counted = Counted(pipe)
        change(pipe)
        counted.states(PROMPT)
        counted.states(PROMPT)
        assert counted.made == 2 and not counted.cache.kept


def test_it_is_bounded(pipe, monkeypatch):
    monkeypatch.setattr(caches, "ENTRIES", 2)
    counted = Counted(pipe)
    for word in ("cat", "grass", "cat", "sky", "cat"):
        counted.states(word)
    assert counted.made == 3 and list(counted.cache.kept) == [("sky",), ("cat",)]
    monkeypatch.setattr(caches, "BYTES", 0)
    counted.states("cat")
    assert not counted.cache.kept


def test_few_elements_are_compared():
    weights = [torch.randn(100, 7), torch.randn(3), torch.randn(5, 9).T, torch.randn(())]
    assert len(probe_of(weights)) <= 4 * caches.PROBED
    assert len(probe_of([])) == 0


def test_forward_uses_it(pipe):
    extractor = FeatureExtractor("mid-vit-block0-cross-map", "1-5", pipeline=pipe)
    made = []
    encode = extractor.backbone.encode_text
    extractor.backbone = dataclasses.replace(
        extractor.backbone, encode_text=lambda *given: made.append(given) or encode(*given)
    )
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second = (extractor.extract(PROMPT, picture)["mid-vit-block0-cross-map"] for _ in range(2))
    assert torch.equal(first, second) and len(made) == 1
