"""The method as a user calls it, with and without names for things; configs; bad input."""

import json

import numpy as np
import pytest
import torch
from diffusion_feature import LayerNotFound, PipelineNotFound
from goca.config import ConfigError, SegmenterConfig, load_config, names
from goca.prompts import PromptAnnotation
from goca.protocol import ProtocolError
from goca.requests import seed_of
from goca.segmenter import EmptyClass, NoClass, Segmenter
from PIL import Image
from tiny import SD_CONFIG

HEAD, LAYER, RESCALE = "dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+"
VANILLA = ("average", "vanilla", "per-token renorm+")


@pytest.fixture(scope="module")
def picture():
    pixels = torch.randint(0, 256, (30, 44, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def seg(tiny_sd):
    return Segmenter.from_pretrained(str(tiny_sd), SD_CONFIG, device="cpu")


ANNOTATION = PromptAnnotation("cat, grass, sky", [1, 3, 5], {7: [1], 2: [3]}, [0], [[5]])


# ---- what a user calls


def test_a_prompt_in_words(seg, picture, tmp_path):
    segmentation = seg(picture, "Cat, grass , sky")
    assert segmentation.scores.shape == (4, 8, 8)
    assert segmentation.names == ["cat", "grass", "sky", "background"]
    assert segmentation.class_ids == [1, 2, 3, 0]
    label = segmentation.label_map()
    assert label.shape == (30, 44)
    assert set(label.unique().tolist()) <= {0, 1, 2, 3}
    assert segmentation.label_map((5, 6)).shape == (5, 6)
    assert segmentation.overlay().size == (44, 30)
    segmentation.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), label)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.png"]


def test_noise_follows_the_image_id(seg, picture, tmp_path):
    maps = [seg.score_maps(picture, ANNOTATION, image_id=name) for name in ("a", "a", "b")]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    picture.save(tmp_path / "a.png")
    assert seed_of(tmp_path / "a.png", None) == seed_of(picture, "a.png") == 35755096830664639
    fresh = Segmenter(seg.extractor, load_config(seg.config, protocol={"seed": "none"}))
    maps = [fresh.score_maps(picture, ANNOTATION, image_id="a") for _ in range(2)]
    assert not torch.equal(*maps)


def test_vanilla_needs_no_reference(tiny_sd, picture):
    config = {**SD_CONFIG, "head_method": "average", "layer_method": "vanilla", "rescale_method": "per-token renorm+"}
    seg = Segmenter.from_pretrained(str(tiny_sd), config, device="cpu")
    assert seg.capture(picture, ANNOTATION).reference is None
    assert seg.score_maps(picture, ANNOTATION).shape == (3, 8, 8)


def test_no_class_leaves_the_background_alone(seg, picture):
    nothing = PromptAnnotation("sky", [1], {}, [0], [[1]])
    assert seg.score_maps(picture, nothing).shape == (1, 8, 8)
    assert seg(picture, nothing).class_ids == [0]
    assert (seg.score_maps(picture, PromptAnnotation("", [], {}, [0], [])) == 0).all()


# ---- bad input


@pytest.mark.parametrize("prompt", ["", " , ,"])
def test_a_prompt_that_names_nothing(seg, picture, prompt):
    with pytest.raises(NoClass, match=r"contains no class names; expected e\.g\. 'cat, grass, wall'"):
        seg(picture, prompt)


@pytest.mark.parametrize("tokens", [[], [40, 41]], ids=["lost", "beyond the text"])
def test_a_class_whose_words_were_cut_off(seg, picture, tokens):
    cut = PromptAnnotation("cat, grass, sky", [1, 3, *tokens], {7: [1], 9: tokens}, [0], [[3]])
    with pytest.warns(EmptyClass, match="class 9 has no token left in 'cat, grass, sky'"):
        scores = seg.score_maps(picture, cut)
    assert (scores[1] == 0).all()
    assert float(scores[0].max()) == 1
    with pytest.warns(EmptyClass):
        refined = seg(picture, cut).scores
    assert not refined.isnan().any()
    released = Segmenter(seg.extractor, load_config(seg.config, protocol="released"))
    scores = released.score_maps(picture, cut)
    assert scores[1].isnan().all()
    assert not scores[[0, 2]].isnan().any()


def test_a_pipeline_folder_that_is_not_one(tmp_path):
    with pytest.raises(PipelineNotFound, match=r"has no model_index\.json"):
        Segmenter.from_pretrained(str(tmp_path), "sd15")


def test_unknown_names_list_the_known_ones(tiny_sd):
    with pytest.raises(ConfigError, match=r"no model config 'sd-15' \(nearest: sd15\); known: .*sd15-baseline"):
        load_config("sd-15")
    with pytest.raises(ConfigError, match=r"unknown model config field 'heads' .*nearest: head_method"):
        load_config("sd15", heads="average")
    with pytest.raises(ConfigError, match="unknown head_method 'mean'; expected one of: average, l2-norm"):
        load_config("sd15", head_method="mean")
    with pytest.raises(ConfigError, match="feat_size is 0; it must be a whole number of at least 3"):
        load_config("sd15", feat_size=0)
    with pytest.raises(ConfigError, match="lacks version, img_size"):
        load_config({"t": 3})
    with pytest.raises(ProtocolError, match="expected one of: paper, released"):
        load_config("sd15", protocol="official")
    with pytest.raises(LayerNotFound, match="Nearest: mid-vit-block0-cross-map"):
        Segmenter.from_pretrained(str(tiny_sd), {**SD_CONFIG, "cross_layers": "mid-vit-block1-cross-map"})
    with pytest.raises(LayerNotFound, match="Nearest: up-level1-repeat2-vit-block0-self-map"):
        Segmenter.from_pretrained(str(tiny_sd), {**SD_CONFIG, "self_layers": ["up-level1-repeat3-vit-block0-self-map"]})
    with pytest.raises(LayerNotFound, match="'nowhere' is not in this UNet2DConditionModel"):
        Segmenter.from_pretrained(str(tiny_sd), {**SD_CONFIG, "ref_layer": "nowhere"})


# ---- configs


def test_configs_are_read_alike_by_hydra_and_without():
    from goca.config import folder
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    for name in names():
        with initialize_config_dir(str(folder().parent), version_base=None):
            composed = OmegaConf.to_container(compose(overrides=[f"+model={name}"]).model)
        assert load_config(composed) == load_config(name)


def test_a_config_goes_through_plain_values():
    config = load_config("sd15", protocol={"preset": "released", "noise": "nominal"})
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config
    assert isinstance(config, SegmenterConfig)


def test_the_published_settings():
    vanilla, plain = load_config("sd15-vanilla"), load_config("sd15")
    assert (vanilla.head_method, vanilla.layer_method, vanilla.rescale_method) == VANILLA
    assert load_config(vanilla, head_method=HEAD, layer_method=LAYER, rescale_method=RESCALE) == plain
    assert load_config({"of": "sd15", "img_size": 256}).img_size == 256


def test_the_baseline_picks_eight_layers(goldens):
    config = load_config("sd15-baseline", img_size=256, feat_size=32)
    assert len(Segmenter.from_pretrained(str(goldens / "pipelines" / "sd15"), config, device="cpu").blocks) == 8
