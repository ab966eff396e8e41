"""Weights that wait elsewhere, or lie in 8 bit: the same maps come out."""

import importlib.util

import pytest
import torch
from diffusion_feature import ExtractorError
from diffusion_feature.devices import device_of, like
from families import FAMILIES
from goca.segmenter import Segmenter
from PIL import Image
from tiny import SD_CONFIG

PICTURE = Image.new("RGB", (40, 30), (90, 120, 200))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_maps_do_not_depend_on_where_weights_wait(family, tmp_path):
    folder = str(family.save(tmp_path / "pipeline"))
    plain = Segmenter.from_pretrained(folder, family.config, device="cpu")
    annotation, _ = plain.read_prompt("cat, grass, sky")
    expected = plain.score_maps(PICTURE, annotation)
    for mode in ("model", "sequential"):
        seg = Segmenter.from_pretrained(folder, family.config, device="cpu", offload=mode)
        torch.testing.assert_close(seg.score_maps(PICTURE, annotation), expected, rtol=0, atol=1e-6)
        assert device_of(seg.extractor.denoiser) == torch.device("cpu")
    weights = [
        weight
        for part in seg.extractor.parts.values()
        if isinstance(part, torch.nn.Module)
        for weight in part.parameters()
    ]
    assert {weight.device.type for weight in weights} == {"meta"}  # nothing is held between forwards
    assert like(seg.extractor.denoiser).dtype == torch.float32


def test_a_mode_that_is_none(tiny_sd):
    with pytest.raises(ExtractorError, match="unknown offload 'disk'; expected one of: model, sequential"):
        Segmenter.from_pretrained(str(tiny_sd), SD_CONFIG, device="cpu", offload="disk")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install '.[int8]'")
def test_a_t5_in_8_bit(tmp_path):
    family = FAMILIES["flux"]
    folder = str(family.save(tmp_path / "pipeline"))
    maps = []
    for int8_text in (False, True):
        seg = Segmenter.from_pretrained(folder, family.config, device="cpu", int8_text=int8_text)
        annotation, _ = seg.read_prompt("cat, grass, sky")
        maps.append(seg.capture(PICTURE, annotation, image_id="a").attention_map())
    encoder = seg.extractor.parts["text_encoder_2"]
    assert {weight.dtype for weight in encoder.parameters()} >= {torch.int8}
    torch.testing.assert_close(*maps, rtol=0, atol=1e-2)
    with pytest.raises(ExtractorError, match="needs a folder or a hub id"):
        Segmenter.from_pretrained(object(), family.config, device="cpu", int8_text=True)


def test_8_bit_without_its_library(tmp_path, monkeypatch):
    folder = str(FAMILIES["flux"].save(tmp_path / "pipeline"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtractorError, match=r"pip install 'goca\[int8\]'"):
        Segmenter.from_pretrained(folder, FAMILIES["flux"].config, device="cpu", int8_text=True)
