"""The refinements: recorded outputs, closed forms, and what bad input gives."""

import builtins

import numpy as np
import pytest
import torch
from goca.refine import (
    DenseCRFMissing,
    ImageReduced,
    RefineError,
    activation_affinity,
    affinity,
    dense_crf,
    median,
    merge_maps,
    merge_proposals,
    pamr,
    prototypes,
)
from goca.refine import (
    images as inputs,
)
from goca.refine.crf import wrapped_bgr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

IMAGE = "small_image.png"


@pytest.fixture(scope="module")
def recorded(goldens):
    folder = goldens / "set4_postprocess"
    arrays = np.load(folder / "postprocess.npz")
    return lambda name: folder / IMAGE if name == IMAGE else torch.tensor(arrays[name])


def halves(h=6, w=8):
    """A picture of two colours, left and right, and maps that know it roughly."""
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[:, : w // 2] = 250
    left = torch.full((h, w), 0.4)
    left[:, : w // 2] = 0.6
    return Image.fromarray(pixels), torch.stack([left, 1 - left])


# ---- recorded


def test_recorded_crf(recorded):
    found = dense_crf(recorded("dcrf/cross"), recorded(IMAGE), protocol="released")
    np.testing.assert_allclose(found, recorded("dcrf/out"), rtol=0, atol=1e-5)
    wrapped = inputs.rgb_tensor(recorded(IMAGE)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(wrapped_bgr(wrapped), recorded("dcrf/image_passed_to_crf"))


def test_recorded_pamr(recorded):
    found = pamr(recorded("pamr/module_in"), recorded("pamr/x"))
    np.testing.assert_allclose(found, recorded("pamr/module_out"), rtol=0, atol=1e-5)
    found = pamr(recorded("pamr/module_soft_in"), recorded(IMAGE))
    np.testing.assert_allclose(found, recorded("pamr/module_soft_out_fullres"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", ["0.0002", "2e-05", "2e-06"])
def test_recorded_merging(recorded, threshold):
    found = merge_maps(recorded("merge/cross"), recorded("merge/space"), float(threshold))
    assert torch.equal(found, recorded(f"merge/out_threshold={threshold}"))


def test_recorded_prototypes(recorded):
    found = prototypes(recorded("prototype/cross"), recorded("prototype/dense"), 32)
    assert torch.equal(found, recorded("prototype/out32"))


@pytest.mark.parametrize("number, value", [(-1, 0.0), (1, torch.nan)])
def test_recorded_affinity_beside_an_odd_map(recorded, number, value):
    scores, expected = recorded("cross"), recorded("affinity/order2")
    scores[number], expected[number] = value, value
    np.testing.assert_allclose(affinity(scores, recorded("space"), 2), expected, rtol=0, atol=1e-5)


# ---- DenseCRF


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_the_crf_follows_an_edge_that_the_maps_miss(protocol):
    image, _ = halves(12, 16)
    left = torch.linspace(1, 0, 16).expand(12, 16).clone()
    left[:, 9] = 0.9  # one column too far, against the colours
    found = dense_crf(torch.stack([left, 1 - left]), image, protocol)
    assert found.shape == (2, 12, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found.sum(0), torch.ones(12, 16))
    assert (found.argmax(0)[:, :8] == 0).all() and (found.argmax(0)[:, 8:] == 1).all()


def test_without_iterations_the_crf_gives_the_probabilities_that_sum_to_one():
    image, maps = halves()
    found = dense_crf(maps, image, iterations=0)
    expected = torch.zeros(2, 6, 8)
    expected[0, :, :4], expected[1, :, 4:] = 1, 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1.1e-5)  # no probability is below 1e-5
    shares = dense_crf(torch.stack([maps[0], maps[0], maps[1]]), image, iterations=0)
    torch.testing.assert_close(shares[:2, :, :4], torch.full((2, 6, 4), 0.5), rtol=0, atol=1e-4)


def test_paper_and_released_differ_in_what_the_crf_is_given():
    image, _ = halves()
    maps = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    paper, released = (dense_crf(maps, image, name, iterations=0) for name in ("paper", "released"))
    torch.testing.assert_close(paper, released, rtol=0, atol=1e-4)  # normalising does not change the order of shares
    assert not torch.allclose(*(dense_crf(maps, image, name) for name in ("paper", "released")), atol=1e-3)


def test_the_crf_without_an_install_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pydensecrf"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    image, maps = halves()
    with pytest.raises(DenseCRFMissing, match=r"pip install goca\[crf\]"):
        dense_crf(maps, image)


def test_large_pictures_are_refined_smaller_with_a_warning(monkeypatch):
    monkeypatch.setattr(inputs, "LARGEST", 400)
    image, maps = halves(20, 40)
    with pytest.warns(ImageReduced, match="2 maps of 20 x 40 pixels are too many: refined at 10 x 20"):
        assert dense_crf(maps, image).shape == (2, 10, 20)


# ---- PAMR and the median


def test_pamr_spreads_within_a_colour_only():
    image, maps = halves(8, 16)
    noisy = maps.clone()
    noisy[0, 4, 3] = 0.0
    found = pamr(noisy, image)
    assert found[0, 4, 3] > 0.5
    assert (found.argmax(0) == maps.argmax(0)).all()


def test_pamr_of_one_colour_is_the_mean_of_neighbours():
    scores = torch.zeros(1, 5, 5)
    scores[0, 2, 2] = 1
    found = pamr(scores, torch.full((3, 5, 5), 7.0), iterations=1, dilations=(1,))[0]
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1 / 8
    expected[2, 2] = 0
    torch.testing.assert_close(found, expected)
    assert torch.equal(pamr(scores, torch.full((3, 5, 5), 7.0), iterations=0), scores)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_pamr_treats_each_map_alone_and_stays_in_range(seed, n, h, w):
    generator = torch.Generator().manual_seed(seed)
    scores, image = torch.rand(n, 4, 4, generator=generator), 254 * torch.rand(3, h, w, generator=generator) + 1
    found = pamr(scores, image, iterations=2, dilations=(1, 2))
    assert found.shape == (n, h, w)
    assert found.min() >= scores.min() - 1e-5 and found.max() <= scores.max() + 1e-5
    torch.testing.assert_close(pamr(scores[:1], image, 2, (1, 2)), found[:1])
    torch.testing.assert_close(pamr(1 - scores, image, 2, (1, 2)), 1 - found, rtol=0, atol=1e-5)
    batch = pamr(torch.stack([scores, 1 - scores]), torch.stack([image, image]), 2, (1, 2))
    torch.testing.assert_close(batch, torch.stack([found, 1 - found]), rtol=0, atol=1e-5)


def test_the_median_removes_a_single_pixel_and_keeps_edges():
    maps = torch.zeros(2, 5, 6)
    maps[0, :, :3] = 1
    maps[1, 2, 2] = 1
    assert torch.equal(median(maps)[0], maps[0])
    assert (median(maps)[1] == 0).all()
    assert torch.equal(median(maps, 1), maps)
    with pytest.raises(RefineError, match="window is 2"):
        median(maps, 2)


# ---- odd maps and pictures, for every refinement of maps

DENSE = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
SPACE = torch.rand(64, 64, generator=torch.Generator().manual_seed(2)).softmax(-1)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
ALL = {
    "affinity": lambda scores: affinity(scores, SPACE, 1),
    "merge_maps": lambda scores: merge_maps(scores, SPACE),
    "prototypes": lambda scores: prototypes(scores, DENSE, 8),
    "pamr": lambda scores: pamr(scores, PICTURE, iterations=2),
    "paper crf": lambda scores: dense_crf(scores, PICTURE),
    "released crf": lambda scores: dense_crf(scores, PICTURE, "released"),
}
MAPS = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ALL)
def test_a_nan_map_stays_alone(name):
    maps = MAPS.clone()
    maps[1] = torch.nan
    found = ALL[name](maps)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2, 3]], ALL[name](MAPS[[0, 2, 3]]))
    assert ALL[name](maps[[1, 1]]).isnan().all()


# maps that are all zero: nothing to tell them apart, so a CRF shares equally, and the others leave zeros
@pytest.mark.parametrize("name, value", zip(ALL, [0, 0, 0, 0, 0.25, 0.25]))
def test_all_zero(name, value):
    torch.testing.assert_close(ALL[name](torch.zeros(4, 8, 8)), torch.full((4, 8, 8), float(value)))


@pytest.mark.parametrize("name", ALL)
def test_one_class_or_none(name):
    found = ALL[name](MAPS[:1])
    assert found.shape == (1, 8, 8) and found.isfinite().all()
    if "crf" in name:
        assert (found == 1).all()
    assert ALL[name](MAPS[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("refine", [pamr, dense_crf])
def test_pictures_of_one_pixel_width(refine, size):
    found = refine(MAPS, Image.new("RGB", size, (9, 200, 30)))
    assert found.shape == (4, size[1], size[0]) and found.isfinite().all()


def test_pictures_in_every_form():
    array = np.asarray(PICTURE)
    expected = torch.tensor(array).permute(2, 0, 1).float()
    tensor = expected.to(torch.uint8)
    for form in (PICTURE, array, tensor, tensor[None], array.transpose(2, 0, 1), array.astype(np.float64)):
        assert torch.equal(inputs.rgb_tensor(form), expected)
    torch.testing.assert_close(inputs.rgb_tensor(expected / 255), expected)
    assert inputs.rgb_tensor(Image.new("L", (3, 2), 7)).unique().tolist() == [7]
    for bad in (
        np.zeros((4, 5)),
        np.zeros((4, 5, 4)),
        np.full((4, 5, 3), -0.5),
        np.full((4, 5, 3), 300.0),
        np.full((4, 5, 3), np.nan),
        np.zeros((3, 0, 3)),
    ):
        with pytest.raises(RefineError, match="expected"):
            inputs.rgb_tensor(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: dense_crf(MAPS[0], PICTURE),
        lambda: dense_crf(MAPS, PICTURE, "both"),
        lambda: dense_crf(MAPS, PICTURE, iterations=-1),
        lambda: pamr(MAPS, PICTURE, iterations=-1),
        lambda: pamr(MAPS, PICTURE, dilations=()),
        lambda: pamr(MAPS[None], [PICTURE, PICTURE]),
        lambda: affinity(MAPS, SPACE[:9, :9], 1),
        lambda: affinity(MAPS, SPACE, -1),
        lambda: merge_maps(MAPS, SPACE[:9, :9]),
        lambda: merge_maps(MAPS, SPACE * torch.nan),
        lambda: merge_maps(MAPS, SPACE, threshold=-1),
        lambda: merge_proposals(SPACE, (8, 8), stride=0),
        lambda: prototypes(MAPS, DENSE[0], 8),
        lambda: prototypes(MAPS, DENSE, 0),
        lambda: prototypes(MAPS, DENSE, "other"),
        lambda: activation_affinity(MAPS, DENSE[0], 1),
        lambda: activation_affinity(MAPS, DENSE, -1),
    ],
)
def test_what_cannot_be_refined_is_refused(call):
    with pytest.raises(RefineError):
        call()
