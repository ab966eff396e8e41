"""What docs/adding-a-backbone.md and docs/adding-a-dataset.md show, run as it stands on the page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_t5
import torch
from commands import main
from diffusers import CogView3PlusPipeline
from diffusion_feature import VersionTaken, register
from diffusion_feature.families import VERSIONS
from docpages import ROOT, blocks, pages, settings_of
from goca import Segmenter, load_config
from goca.datasets import READERS, VOID, load_dataset
from goca.embedded import resolve
from goca.method.aggregation import aggregate_heads
from PIL import Image

BLOCK = "vit-block1"
RULE = "dot-product w/o clamp"
SMALL = {"img_size": 32, "feat_size": 4, "ref_layer": f"{BLOCK}-attn-out", "self_layers": [f"{BLOCK}-self-map"]}


def run_blocks(page, count):
    """The names that the first python blocks of a page define."""
    names = {}
    for number, block in enumerate(blocks(pages()[page], "python")[:count]):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


# ---- a backbone


@pytest.fixture(scope="module")
def page():
    """The family of the page, registered while these tests run."""
    names = run_blocks("docs/adding-a-backbone.md", 2)
    yield names
    del VERSIONS["my-cogview3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_t5.save_cogview3(tmp_path_factory.mktemp("pipelines") / "cogview3")


@pytest.fixture(scope="module")
def seg(page, folder):
    return Segmenter.from_pretrained(str(folder), page["CONFIG"] | SMALL, device="cpu")


@pytest.fixture
def picture():
    pixels = torch.randint(0, 256, (30, 44, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_the_added_family_segments_and_every_attention_is_seen(seg, picture):
    everything = tiny.Everything(*seg.extractor.features)
    bare = tiny.Everything()
    outputs = [seg.extractor.forward(["cat, sky"], [picture], each, 100) for each in (everything, bare)]
    assert torch.equal(*outputs)
    names = [name for attention in everything.attentions for name in attention.layer.maps]
    assert names == [f"vit-block{n}-{kind}-map" for n in range(3) for kind in ("cross", "self")]
    assert {tuple(feature.shape[-2:]) for feature in everything.dense.values()} == {(4, 4)}
    found = seg(picture, "cat, grass, sky", ask="complete")
    assert found.scores.shape == (4, 4, 4) and found.scores.isfinite().all() and found.scores[:3].amax() > 0
    assert found.label_map().shape == (30, 44)


def test_the_real_model_s_settings_are_read(page):
    config = load_config(page["CONFIG"])
    assert (config.version, config.grid, config.img_size) == ("my-cogview3", (64, 64), 1024)


def test_the_prompt_is_what_the_pipeline_of_diffusers_encodes(seg, folder):
    pipe = CogView3PlusPipeline.from_pretrained(folder)
    theirs, _ = pipe.encode_prompt("cat, grass", do_classifier_free_guidance=False)
    ours = seg.extractor.backbone.encode_text(seg.extractor.parts, ["cat, grass"])
    torch.testing.assert_close(ours.arguments["encoder_hidden_states"], theirs)


def test_the_denoiser_is_called_as_the_pipeline_of_diffusers_calls_it(seg, folder, picture):
    calls = []

    def note(module, args, given):
        calls.append(dict(given))

    pipe = CogView3PlusPipeline.from_pretrained(folder)
    for denoiser in (pipe.transformer, seg.extractor.denoiser):
        handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
        if denoiser is pipe.transformer:
            pipe.set_progress_bar_config(disable=True)
            pipe("cat", num_inference_steps=2, guidance_scale=1.0, height=32, width=32, output_type="latent")
        else:
            seg(picture, "cat", ask="complete")
        handle.remove()
    theirs, ours = calls[0], calls[-1]
    for name in ("encoder_hidden_states", "original_size", "target_size", "crop_coords"):
        torch.testing.assert_close(ours[name], theirs[name], msg=name)
    assert {*theirs} - {*ours} <= {"hidden_states"}, "our latents are given by place"
    assert ours["timestep"].dtype == theirs["timestep"].dtype and ours["timestep"].shape == theirs["timestep"].shape


def test_maps_are_those_computed_by_hand(seg, picture):
    """From what the attention module is handed: its own projections and norms, one softmax, the heads' formula."""
    given, everything = {}, tiny.Everything()
    attn = seg.extractor.denoiser.transformer_blocks[1].attn1
    hook = attn.register_forward_pre_hook(lambda module, args, handed: given.update(handed), with_kwargs=True)
    seg.extractor.forward(["cat, sky"], [picture], everything, 100)
    hook.remove()
    tokens = torch.cat([given["encoder_hidden_states"], given["hidden_states"]], dim=1)  # [1, 224 + 16, C]
    q, k, v = (project(tokens).unflatten(2, (2, 8)).transpose(1, 2) for project in (attn.to_q, attn.to_k, attn.to_v))
    A = torch.softmax(attn.norm_q(q) @ attn.norm_k(k).transpose(2, 3) / 8**0.5, dim=-1)[:, :, 224:]  # [1, 2, 16, 240]
    o = torch.einsum("bhsk,bhkd,hdc->bhsc", A, v, attn.to_out[0].weight.T.unflatten(0, (2, 8)))
    w = (o * o.sum(1, keepdim=True)).sum(-1)
    expected = ((w / w.sum(1, keepdim=True))[..., None] * A[..., :224]).sum(1)
    seen = everything.attentions[1]
    assert seen.layer.block == BLOCK
    torch.testing.assert_close(seen.map("cross"), A[..., :224], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(aggregate_heads(seen, [RULE])[RULE], expected, rtol=1e-3, atol=1e-6)


def test_a_version_is_taken_once(page):
    register("my-cogview3", page["COGVIEW3"])
    with pytest.raises(VersionTaken, match="'flux' is the Flux transformer; give the CogView3-Plus"):
        register("flux", page["COGVIEW3"])
    assert VERSIONS["flux"].name == "Flux transformer"


# ---- a data set

DATASET = "docs/adding-a-dataset.md"
SCENES = Path(resolve("goca:scenes"))
IDS = ["test_00000", "test_00003"]


def scenes(folder, pictures, labels, ending, encode=lambda label: label):
    """Two embedded scenes in two folders, with the class table and captions."""
    for image_id in IDS:
        picture = Image.open(SCENES / "JPEGImages" / f"{image_id}.png")
        label = Image.fromarray(encode(truth(image_id)))
        for name, image in ((f"{pictures}/{image_id}.png", picture), (f"{labels}/{image_id}{ending}", label)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    shutil.copy(SCENES / "classes.json", folder)
    captions = json.loads((ROOT / "gpt_output" / "scenes.json").read_text())
    (folder / "captions.json").write_text(json.dumps({f"{each}.png": captions[f"{each}.png"] for each in IDS}))
    return folder


def truth(image_id):
    return np.array(Image.open(SCENES / "SegmentationClass" / f"{image_id}.png"))


def test_a_folder_in_voc_s_layout_needs_no_code(tmp_path, monkeypatch, capsys):
    """The page's YAML and its second command; what the first one looks through is the same folder."""
    settings_of("docs/adding-a-dataset.md", tmp_path)
    tree = scenes(tmp_path / "garden", "JPEGImages", "SegmentationClass", ".png")
    for folder, ending in (("Annotations", ".xml"), ("ImageSets/Segmentation", "")):
        (tree / folder).mkdir(parents=True)
        for image_id in IDS if ending else ():
            shutil.copy(SCENES / folder / f"{image_id}{ending}", tree / folder)
    (tree / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(IDS))
    command = next(line for line in blocks(pages()[DATASET], "bash")[0].splitlines() if "src-main/main.py" in line)
    said = main(monkeypatch, capsys, tmp_path, *command.split()[2:], "run_dir=out")
    assert said.code == 0, said.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["images"]["counted"] == 2 and results["mIoU"]["best"]["mIoU"] > 0.5


def test_a_reader_of_one_s_own(tmp_path, monkeypatch):
    """The page's reader and script, on label files as the page describes them, with a corner that is not labelled."""

    def from_ten(label):
        values = label + 10
        values[:4, :4] = 0
        return values

    scenes(tmp_path / "garden", "pictures/test", "labels/test", "_ids.png", from_ten)
    monkeypatch.chdir(tmp_path)
    try:
        names = run_blocks(DATASET, 2)
        dataset = load_dataset(names["values"]["dataset"])
    finally:
        READERS.pop("garden", None)
    results = names["results"]
    assert results["images"]["counted"] == 2 and results["mIoU"]["best"]["mIoU"] > 0.5
    assert dataset.ids == IDS
    for image_id in IDS:
        sample, expected = dataset.sample(image_id), truth(image_id)
        expected[:4, :4] = VOID
        assert np.array_equal(sample.label, expected)
        assert sample.present == sorted({*expected.flat} - {0, VOID})
