"""Which classes are looked for: what each source is told, and zero-shot CLIP on a tiny random model."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from goca.benchmark.word_sources import WORD_SOURCES, Asked, TaggerConfig, TaggerError
from goca.open.tagging import Tagger
from goca.schema import ConfigError
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

CLASSES = [[], ["cat"], ["dog", "wall"], [], ["sky"]]
SAMPLE = SimpleNamespace(present=[2], image=Image.new("RGB", (40, 30), "red"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a random CLIP model of transformers."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    words = tiny.save_tokenizer(folder)
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = {**layers, **ends, "vocab_size": words, "max_position_embeddings": tiny.TEXT}
    vision = {**layers, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def offers(asked):
    found = {}
    for name, source in WORD_SOURCES.items():
        offer = source.offer(asked, SAMPLE, "cat, grass" if source.captions else "")
        found[name] = (offer.caption, offer.class_ids, offer.add_missing)
    return found


def test_each_source_looks_for_what_it_was_told():
    assert offers(Asked(CLASSES, add_missing=True, tagger=lambda image: [4])) == {
        "present": ("cat, grass", [2], True),
        "caption": ("cat, grass", [1, 2, 4], False),
        "vocabulary": ("", [1, 2, 4], True),
        "tags": ("", [4], True),
    }
    assert not offers(Asked(CLASSES, add_missing=False, tagger=lambda image: []))["present"][2]
    assert len({source.oracle for source in WORD_SOURCES.values()}) == 4


def test_sources_load_without_torch():
    script = "import sys, goca.benchmark.word_sources; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- zero-shot CLIP ----------------------------------------------------------------------------------------------


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8))


def test_probabilities_are_clip_s_own_where_a_class_has_one_name(clip):
    classes = [[], ["cat"], ["dog"], ["sky"]]
    found = Tagger(TaggerConfig(str(clip), "a {name}"), classes).probabilities(picture(1))
    model, tokens = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    inputs = tokens(["a cat", "a dog", "a sky"], padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(clip)(picture(1), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, **pixels).logits_per_image.softmax(1)[0].tolist()
    assert list(found) == [1, 2, 3] and list(found.values()) == pytest.approx(expected, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1) and max(expected) > min(expected)


def test_classes_at_the_threshold_are_found_and_no_other(clip):
    tagger = Tagger(TaggerConfig(str(clip)), CLASSES)
    p = tagger.probabilities(picture(2))
    assert set(p) == {1, 2, 4}
    for threshold in (0.0, min(p.values()), max(p.values()), 1.0):
        found = Tagger(TaggerConfig(str(clip), threshold=threshold), CLASSES)(picture(2))
        assert found == [class_id for class_id in (1, 2, 4) if p[class_id] >= threshold]


def test_names_of_a_class_are_averaged_in_any_order(clip):
    one, two = (Tagger(TaggerConfig(str(clip)), [[], names, ["cat"]]) for names in (["dog", "wall"], ["wall", "dog"]))
    assert one.probabilities(picture(3)) == pytest.approx(two.probabilities(picture(3)), abs=1e-6)
    alone = Tagger(TaggerConfig(str(clip)), [[], ["dog"], ["cat"]])
    assert one.probabilities(picture(3)) != pytest.approx(alone.probabilities(picture(3)), abs=1e-6)


def test_images_of_every_mode_are_read(clip):
    tagger = Tagger(TaggerConfig(str(clip)), CLASSES)
    for mode in ("L", "P", "RGBA", "CMYK"):
        assert sum(tagger.probabilities(picture(4).convert(mode)).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ""}, "tagger.model is ''"),
        ({"template": "a photo"}, "with {name} in it, once"),
        ({"threshold": 1.5}, "tagger.threshold is 1.5; it must be a finite number of at least 0 and at most 1"),
        ({"threshold": True}, "tagger.threshold is True"),
        ({"modle": "x"}, "tagger has no field modle; fields: model, template, threshold; nearest: model"),
        ("x", "expected a mapping of model, template, threshold"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TaggerConfig.of(values)


def test_a_model_that_is_none_is_named(tmp_path, clip, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere", "no-one/no-clip"):
        with pytest.raises(TaggerError, match=r"tagger\.model=.* cannot be loaded: (?s:.*)in safetensors"):
            Tagger(TaggerConfig(str(place)), CLASSES)(picture(5))
