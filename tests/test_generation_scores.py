"""The generation experiment's scores: distances, the Inception network, FID, KID and CLIP scores of folders."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

ROOT = Path(__file__).parents[1]
HERE = ROOT / "src-additional/generation_experiment"
sys.path.insert(0, str(HERE))

import inception as fid_network  # noqa: E402
import scene_network  # noqa: E402
from captions import read_captions  # noqa: E402
from distances import (  # noqa: E402
    DistanceError,
    Statistics,
    frechet_distance,
    kernel_distance,
    squared_mmd,
    statistics,
)
from evaluate import Settings as Scoring  # noqa: E402
from evaluate import evaluate  # noqa: E402
from features import FeaturesError, images_of  # noqa: E402
from generate import SettingsError  # noqa: E402

# ---- distances


def gaussian(mean, *variances):
    return Statistics(np.full(len(variances), float(mean)), np.diag(variances).astype(float))


def test_frechet_distance_of_known_gaussians():
    assert frechet_distance(gaussian(0, 1), gaussian(3, 4)) == pytest.approx(9 + (2 - 1) ** 2)
    assert frechet_distance(gaussian(0, 1, 9, 0), gaussian(0, 4, 1, 0)) == pytest.approx(1 + 4)
    a = Statistics(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))  # variances 3 and 1 along the diagonals
    assert frechet_distance(a, gaussian(0, 1, 1)) == pytest.approx(2 * (2 - np.sqrt(3)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), scale=st.floats(0.1, 10))
def test_frechet_distance_is_a_distance(seed, d, scale):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(12, d)), random.normal(size=(9, d)) @ random.normal(size=(d, d)) + 1
    a, b = statistics(x), statistics(y)
    far = frechet_distance(a, b)
    assert far >= -1e-9
    assert frechet_distance(b, a) == pytest.approx(far, rel=1e-6, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    turn = np.linalg.qr(random.normal(size=(d, d)))[0] * scale
    assert frechet_distance(statistics(x @ turn), statistics(y @ turn)) == pytest.approx(scale**2 * far, rel=1e-5)


def test_statistics_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(statistics(x.astype(np.float32)).covariance, np.cov(x.T), rtol=1e-5)


def test_squared_mmd_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0]])
    # k(0,1) = 1, k(2,0) = 1; cross: k(0,2) = 1, k(0,0) = 1, k(1,2) = 27, k(1,0) = 1
    assert squared_mmd(x, y) == pytest.approx(1 + 1 - 2 * 30 / 4)


def test_kernel_distance_tells_sets_apart():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(400, 8)), random.normal(size=(300, 8))
    near, deviation = kernel_distance(x, y, subsets=40, size=100)
    far, _ = kernel_distance(x, y + 1, subsets=40, size=100)
    assert abs(near) < 3 * deviation and far > 1
    assert kernel_distance(x, y, subsets=5, size=100) == kernel_distance(x, y, subsets=5, size=100)
    assert kernel_distance(x, y + 1, subsets=2, size=10**6)[0] == pytest.approx(squared_mmd(x[:300], y + 1), rel=0.3)


@pytest.mark.parametrize("features", [np.zeros(4), np.zeros((1, 4)), np.full((3, 2), np.nan)])
def test_features_that_cannot_be_compared(features):
    with pytest.raises(DistanceError):
        statistics(features)
    with pytest.raises(DistanceError):
        frechet_distance(gaussian(0, 1), gaussian(0, 1, 1))


# ---- the Inception network


def test_inception_is_laid_out_as_published():
    with torch.device("meta"):
        network = fid_network.Inception()
    assert sum(p.numel() for p in network.parameters()) == 21_785_568  # of inception v3 without its classifier
    names = set(network.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_7c.branch3x3dbl_3b.bn.running_var",
        "Mixed_6a.branch3x3.conv.weight",
        "Mixed_6e.branch7x7dbl_5.bn.weight",
        "Mixed_5b.branch_pool.bn.num_batches_tracked",
    } <= names
    assert not any(name.startswith("fc") for name in names)
    assert network.Mixed_7b.pool == "average" and network.Mixed_7c.pool == "max"
    assert network(torch.zeros(1, 3, 299, 299, device="meta")).shape == (1, 2048)


def test_padding_is_left_out_of_averages():
    block = fid_network.Branches({"branch_pool": torch.nn.Identity()}, [], "average")
    np.testing.assert_allclose(block(torch.ones(1, 1, 4, 4)), 1)


def test_weights_are_read_or_missed_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(fid_network.WeightsMissing, match="weights=FILE"):
        fid_network.load_inception()
    state = fid_network.Inception().state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "checkpoints" / fid_network.FILE)
    network = fid_network.load_inception()
    assert not network.training
    torch.testing.assert_close(network.Mixed_7c.branch_pool.conv.weight, state["Mixed_7c.branch_pool.conv.weight"])


# ---- scoring


@pytest.fixture
def folders(tmp_path):
    """Two folders of noise, the second one brighter, and a scene network's weights."""
    from safetensors.torch import save_file

    random = np.random.default_rng(0)
    for name, low in (("images", 0), ("real", 60)):
        (tmp_path / name).mkdir()
        for number in range(6):
            picture = random.integers(low, low + 190, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number:06d}.png")
    torch.manual_seed(0)
    save_file(scene_network.SceneNetwork().state_dict(), tmp_path / "net.safetensors")
    return tmp_path


def scoring(folders, **more):
    given = {"images": str(folders / "images"), "features": "scenes", "weights": str(folders / "net.safetensors")}
    return Scoring(**{**given, "reference": str(folders / "real"), "clip": "none", "device": "cpu", **more})


def test_scores_carry_their_origin(folders):
    result = evaluate(scoring(folders))
    assert json.loads((folders / "images/scores.json").read_text()) == result
    assert result["images"] == 6 and result["distance"]["resize"] == "bicubic"
    assert result["distance"]["reference_images"] == 6 and result["distance"]["network"] == "scenes"
    assert set(result["scores"]) == {"fid", "kid", "kid_deviation"} and result["scores"]["fid"] > 1e-6
    same = evaluate(scoring(folders, reference=str(folders / "images")))
    assert same["scores"]["fid"] == pytest.approx(0, abs=1e-5)


def test_statistics_of_others(folders):
    np.savez(folders / "stats.npz", mu=np.zeros(64), sigma=np.zeros((64, 64)))
    result = evaluate(scoring(folders, reference=str(folders / "stats.npz")))
    assert set(result["scores"]) == {"fid"}
    np.savez(folders / "stats.npz", mu=np.zeros(64))
    with pytest.raises(FeaturesError, match="mu and sigma"):
        evaluate(scoring(folders, reference=str(folders / "stats.npz")))


def test_images_that_cannot_be_scored(folders):
    with pytest.raises(FeaturesError, match="expected 7"):
        evaluate(scoring(folders, n=7))
    (folders / "images/000003.png").write_bytes(b"\x89PNG half")
    with pytest.raises(FeaturesError, match="000003"):
        evaluate(scoring(folders))
    with pytest.raises(SettingsError, match="nothing to score"):
        evaluate(scoring(folders, reference=None))


def test_clip_scores_are_cosines(folders, tmp_path):
    from tiny import save_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    words = save_tokenizer(tmp_path / "tokenizer")
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(
            text_config={**small, "vocab_size": words, "max_position_embeddings": 12, **ends},
            vision_config={**small, "image_size": 32, "patch_size": 16},
            projection_dim=8,
        )
    ).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    side = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    clip.save_pretrained(tmp_path / "clip")
    CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path / "clip")
    (folders / "captions.txt").write_text("cat\ndog, grass, wall, sky, cat, dog, grass, wall, sky\n" + "sky\n" * 4)
    more = {"captions": str(folders / "captions.txt"), "clip": str(tmp_path / "clip"), "reference": None}
    result = evaluate(scoring(folders, **more))
    assert result["clip"]["model"] == str(tmp_path / "clip")
    texts = list(read_captions(folders / "captions.txt").values())
    cosines = []
    with torch.no_grad():
        for file, text in zip(images_of(folders / "images"), texts):
            ids = tokenizer(text, return_tensors="pt", padding="max_length", truncation=True, max_length=12)
            shown = pictures(Image.open(file), return_tensors="pt")["pixel_values"]
            output = clip(pixel_values=shown, **ids)
            a, b = output.image_embeds[0], output.text_embeds[0]
            cosines.append(float(100 * (a @ b) / (a.norm() * b.norm())))
    assert result["scores"]["clip_score"] == pytest.approx(np.mean(cosines), rel=1e-4)


def test_faithfulness_by_hand():
    seen = np.zeros((2, 16), dtype=bool)
    seen[0, [0, 8]] = True  # ball and sky, as the caption says
    seen[1, [0, 3, 9]] = True  # house and wall are named; ball is not, forest is missed
    found = scene_network.faithfulness(seen, ["ball, sky", "(house, roof), wall, forest"])
    assert found == {"found": pytest.approx(4 / 5), "exact": pytest.approx(1 / 2)}
