"""Looking inside a score: each stage is what the method computes, and bad input is answered in one line."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from commands import ROOT
from families import FAMILIES
from goca.embedded import resolve
from goca.requests import Request
from goca.segmenter import Segmenter
from PIL import Image
from tiny import Everything

ADDITIONAL = ROOT / "src-additional"
sys.path.insert(0, str(ADDITIONAL))
from observation.comparison import WIDTH, compare  # noqa: E402
from observation.figure import draw, labelled  # noqa: E402
from observation.numbers import TokenOutside, observe  # noqa: E402

SCENE = f"{resolve('goca:scenes')}/JPEGImages/test_00003.png"
PROMPT = "star, grass, sky, house"


def command(*arguments):
    """The command in this process; returns what it would have said on its way out, or None."""
    spec = importlib.util.spec_from_file_location("attention_observation", ADDITIONAL / "attention_observation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.main(list(map(str, arguments)))
    except SystemExit as ended:
        return ended.code


@pytest.fixture(scope="module")
def picture():
    pixels = torch.randint(0, 256, (30, 44, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def mini():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


# ---- the numbers


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_of_every_family(name, tmp_path, picture):
    family = FAMILIES[name]
    seg = Segmenter.from_pretrained(str(family.save(tmp_path / name)), family.config, device="cpu")
    found = observe(seg, picture, "cat, grass, sky", ["grass", "cat"], [(40, 2)], image_id="a")
    annotation, names = seg.read_prompt("cat, grass, sky")
    tokens = [annotation.existent_objects[class_id] for class_id in (2, 1)]

    # one layer, by hand
    kept = Everything()
    seg.forward([Request(picture, annotation, image_id="a")], kept)
    layer = next(a for a in kept.attentions if a.layer.block == found["layer"] and a.text_keys is not None)
    heads = torch.stack([layer.map("cross")[0][..., each].mean(-1) for each in tokens], 1).unflatten(2, layer.grid)
    np.testing.assert_allclose(found["one_head"], heads[int(found["head"])], atol=1e-6)
    np.testing.assert_allclose(found["one_layer"], heads.mean(0), atol=1e-6)
    weights = found["head_weights"]
    np.testing.assert_allclose(weights.sum(0), np.ones(layer.grid), atol=1e-4)
    np.testing.assert_allclose(found["heads_aggregated"], (heads.numpy() * weights[:, None]).sum(0), atol=1e-5)

    # all layers, as the segmenter itself has them
    capture = seg.capture(picture, annotation, image_id="a")
    assert found["layers"].tolist() == seg.blocks and found["layers"][found["layer_weights"].argmax()] == found["layer"]
    np.testing.assert_allclose(found["layer_weights"], capture.layer_weights(seg.config.layer_method)[0], atol=1e-6)
    attention = capture.attention_map()[0]
    wanted = torch.stack([attention[..., each].mean(-1) for each in tokens])
    np.testing.assert_allclose(found["layers_aggregated"], wanted, atol=1e-6)
    maps = seg.rescale(attention, annotation)
    np.testing.assert_allclose(found["rescaled"], maps[[1, 0]], atol=1e-5)
    segmentation = seg(picture, "cat, grass, sky", image_id="a", ask="complete")
    np.testing.assert_allclose(found["scores"], segmentation.scores, atol=1e-4)
    np.testing.assert_allclose(found["refined"], segmentation.scores[[1, 0]], atol=1e-4)
    assert (found["label_map"] == segmentation.label_map().numpy()).mean() > 0.99
    assert found["pixel_classes"][0] == names[int(found["label_map"][2, 40])]
    draw(name, found, "picture")


def test_a_word_that_is_part_of_a_class(mini, picture):
    found = observe(mini, picture, "(tree, trunk), sky", ["tree", "trunk", "sky"])
    assert found["words"].tolist() == ["tree", "trunk", "sky"]
    tree, trunk, sky = (set(row) - {-1} for row in found["word_tokens"].tolist())
    assert trunk < tree and not tree & sky
    assert not (found["wins"][0] & found["wins"][2]).any()
    of_tree, of_sky, of_rest = found["scores"]
    np.testing.assert_array_equal(found["wins"][0], of_tree > np.maximum(of_sky, of_rest))
    np.testing.assert_array_equal(found["wins"][2], of_sky > np.maximum(of_tree, of_rest))
    assert found["word_tokens"].dtype.kind == "i" and (found["pixel_scores"].max(0) > 0.9).all()


def test_words_are_ranked_at_every_pixel(mini):
    found = observe(mini, Image.open(SCENE), PROMPT)
    places, maps = found["ranking"], found["layers_aggregated"]
    assert places.shape == maps.shape == (4, 16, 16)
    assert np.array_equal(places.min(0), np.ones((16, 16)))
    assert np.array_equal(np.take_along_axis(maps, places.argmin(0)[None], 0)[0], maps.max(0))
    assert np.array_equal(np.sort(places, 0), np.broadcast_to(np.arange(1, 5)[:, None, None], (4, 16, 16)))


def test_what_shares_are_taken_of_can_be_chosen_by_hand(mini):
    usual = observe(mini, Image.open(SCENE), PROMPT)
    every = ["star", "grass", "sky", "house"]
    same = observe(mini, Image.open(SCENE), PROMPT, content=every)
    np.testing.assert_array_equal(same["rescaled"], usual["rescaled"])
    alone = observe(mini, Image.open(SCENE), PROMPT, ["star"], content=["star"])
    assert not alone["rescaled"].any()  # a word's share of itself is 1 everywhere, and min-max makes it 0
    annotation, names = mini.read_prompt(PROMPT)
    class_id = next(key for key, name in names.items() if name == "star")
    position = str(annotation.existent_objects[class_id][0])
    image = Image.open(SCENE)
    by_number, by_name = (observe(mini, image, PROMPT, content=[each, "sky"]) for each in (position, "star"))
    np.testing.assert_array_equal(by_number["rescaled"], by_name["rescaled"])
    assert (by_name["rescaled"] != usual["rescaled"]).any()
    with pytest.raises(TokenOutside, match="token 99 is not in the prompt"):
        observe(mini, Image.open(SCENE), PROMPT, content=["99"])


def test_numbers_at_pixels(mini):
    image = Image.open(SCENE).convert("RGB")
    found = observe(mini, image, PROMPT, pixels=[(37, 25), (63, 0), (0, 63)])
    for row, (x, y) in enumerate(found["pixels"]):
        assert found["pixel_classes"][row] == found["class_names"][found["label_map"][y, x] - 1]
        assert found["pixel_scores"][row].argmax() == found["label_map"][y, x] - 1  # the prompt's own order
    corner = [found["layers_aggregated"][:, 0, -1], found["layers_aggregated"][:, -1, 0]]
    np.testing.assert_allclose(found["pixel_attention"][1:], corner, atol=1e-6)
    assert found["pixel_classes"].tolist() == ["house", "sky", "grass"]


def test_a_chosen_layer_and_head(mini):
    image = Image.open(SCENE)
    found = observe(mini, image, PROMPT, layer="mid-vit-block0-cross-map", head=3)
    assert str(found["layer"]) == "mid-vit-block0" and int(found["head"]) == 3
    assert found["one_head"].shape == (4, 8, 8) and found["head_weights"].shape == (4, 8, 8)
    own = observe(mini, image, PROMPT, layer="mid-vit-block0")
    assert int(own["head"]) == own["head_weight_means"].argmax()


# ---- the command


def test_two_settings_side_by_side(tmp_path, capsys):
    arguments = [SCENE, "--prompt", PROMPT, "--token", "star", "--token", "House", "--pixel", "37,25"]
    assert command(*arguments, "--compare", "vanilla", "--out", tmp_path / "a.png") is None
    assert command(*arguments, "--model", "mini-sd-vanilla", "--out", tmp_path / "deep" / "b.pdf") is None
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.npz", "a.png", "b.npz", "b.pdf"]
    both, plain = np.load(tmp_path / "a.npz"), np.load(tmp_path / "deep" / "b.npz")
    assert both["words"].tolist() == ["star", "house"]
    assert both["vanilla.layer"] == both["layer"] and both["vanilla.head"] == both["head"]
    np.testing.assert_allclose(both["vanilla.layer_weights"], 1 / 7, rtol=1e-6)
    np.testing.assert_allclose(both["vanilla.head_weights"], 1 / 4)
    np.testing.assert_array_equal(both["vanilla.one_head"], both["one_head"])  # the same noise
    np.testing.assert_array_equal(both["vanilla.scores"], plain["scores"])
    assert np.abs(both["scores"] - plain["scores"]).max() > 0.05
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert shown.shape[1] == WIDTH * 200 <= 700  # a paper's column
    assert (shown[:10] == 255).all() and (shown[:, :10] == 255).all() and (shown[-10:] == 255).all()
    assert "a.npz" in capsys.readouterr().out


def test_a_model_without_a_plain_variant_is_compared_with_the_plain_rules(tmp_path, goldens):
    out = tmp_path / "a.png"
    size = ["--set", "img_size=128", "--set", "feat_size=16"]
    pipeline = goldens / "pipelines" / "sd15"
    assert (
        command(
            SCENE,
            "--prompt",
            "cat, dog",
            "--model",
            "sd15-baseline",
            "--pipeline",
            pipeline,
            *size,
            "--compare",
            "vanilla",
            "--protocol",
            "released",
            "--out",
            out,
        )
        is None
    )
    found = np.load(out.with_suffix(".npz"))
    assert np.ptp(found["vanilla.layer_weights"]) == 0 and '"average"' in str(found["vanilla.settings"])
    assert found["vanilla.layers"].tolist() == found["layers"].tolist() and '"seed": "image"' in str(found["settings"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--token", "dog"],
            "WordNotFound: 'dog' is not in the prompt 'star, grass, sky, house'; its words: star, grass",
        ),
        (["--pixel", "64,3"], "PixelOutside: pixel 64,3 is outside the image: x goes from 0 to 63"),
        (
            ["--layer", "mid-block1"],
            "LayerNotFound: 'mid-block1' is not in this UNet2DConditionModel. Nearest: mid-vit-bl",
        ),
        (["--head", "4"], "HeadNotFound: head 4 is not in"),
        (["--model", "mini"], "ConfigError: there is no model config 'mini'"),
        (["--compare", "plain"], "ConfigError: there is no model config 'plain'"),
        (["--set", "img_size"], "ConfigError: --set img_size: expected KEY=VALUE"),
        (["--out", "a.doc"], "OutputError: --out a.doc: unknown extension; expected one of: .png, .pdf, .svg"),
        (["--pipeline", "nowhere/at/all"], "PipelineNotFound"),
        (["--prompt", " , "], "NoClass"),
    ],
)
def test_what_cannot_be_shown(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = command(SCENE, "--prompt", PROMPT, *arguments)
    assert isinstance(said, str) and said.startswith(message) and "\n" not in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((ValueError, KeyError, OSError)):
        command(SCENE, "--prompt", PROMPT, *arguments, "--debug")


def test_pictures_that_cannot_be_read(tmp_path):
    whole = (tmp_path / "whole.png", tmp_path / "torn.png", tmp_path / "text.png")
    Image.open(SCENE).resize((300, 300)).save(whole[0])
    whole[1].write_bytes(whole[0].read_bytes()[:2000])
    whole[2].write_text("no picture")
    for path, reason in ((whole[1], "cannot be read"), (whole[2], "cannot be read"), (tmp_path / "x.png", "no such")):
        said = command(path, "--prompt", PROMPT, "--out", tmp_path / "out.png")
        assert said.startswith("ImageUnreadable: ") and reason in said
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "1.5,2"])
def test_pixels_that_are_none(text, capsys):
    assert command(SCENE, "--prompt", PROMPT, "--pixel", text) == 2
    assert "is not a pixel; expected X,Y" in capsys.readouterr().err


# ---- the figure


def test_names_of_many_layers_leave_each_other_room():
    weights = np.random.default_rng(0).random(57)
    kept = labelled(weights, 20, 2.0)
    assert 20 in kept
    assert np.diff(sorted(kept)).min() * 2.0 / 57 >= 0.1
    assert labelled(weights[:7], 3, 2.0) and set(labelled(weights[:7], 3, 2.0)) == set(range(7))


def test_rows_of_two_settings_stand_under_each_other_and_equal_heads_are_said(mini):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    found = observe(mini, image, PROMPT)
    equal = {**found, "head_weights": np.full_like(found["head_weights"], 0.25)}
    drawn = compare({"mini-sd": found, "vanilla": equal}, "image")
    drawn.canvas.draw()
    check_within_page(drawn)
    texts = drawn.texts
    [said] = [text.get_text() for text in texts if text.get_text().startswith("All ")]
    assert said == "All 4 heads weigh the same, 0.25, at every pixel."
    labels = [text for text in texts if text.get_text() in ("mini-sd", "vanilla") and text.get_position()[0] < 0.1]
    names = [text.get_text() for text in sorted(labels, key=lambda text: -text.get_position()[1])]
    assert names == ["mini-sd", "vanilla"] * len(found["words"])
    alone = [text.get_text() for text in draw("vanilla", equal).texts]
    assert said in alone and said not in [text.get_text() for text in draw("mini-sd", found).texts]


def check_within_page(drawn):
    width, height = drawn.canvas.get_width_height()
    for box in (each.get_window_extent() for each in (*drawn.axes, *drawn.texts)):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_a_large_model_and_a_wide_picture_are_drawn_within_the_page(mini):
    """Flux's numbers of heads and layers, on a picture three times as wide as high."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (60, 180, 3), dtype=np.uint8))
    found = observe(mini, image, PROMPT)
    found["layers"] = np.array([f"vit-block{number}" for number in range(57)])
    found["layer_weights"], found["layer"] = rng.random(57), np.asarray("vit-block56")
    found["head_weights"] = rng.random((24, 8, 8))
    found["head_weight_means"] = found["head_weights"].mean((1, 2))
    drawn = draw("flux", found, "picture")
    drawn.canvas.draw()
    check_within_page(drawn)
    assert all(axes.get_window_extent().width > 5 for axes in drawn.axes)
    drawn = compare({"flux": found, "flux-vanilla": found}, "picture")
    drawn.canvas.draw()
    check_within_page(drawn)
