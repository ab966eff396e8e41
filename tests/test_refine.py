"""The refinements: recorded outputs, closed forms, and what bad input gives."""

import builtins

import numpy as np
import pytest
import torch
from goca.refine import (
    UNMATCHED,
    DenseCRFMissing,
    PictureReduced,
    RefineError,
    activation_affinity,
    activation_similarity,
    affinity,
    dense_crf,
    hungarian_match,
    median,
    merge_maps,
    merge_proposals,
    pamr,
    prototypes,
)
from goca.refine import (
    images as pictures,
)
from goca.refine.crf import wrapped_bgr
from goca.refine.merging import divergence, merge_alike
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
    wrapped = pictures.read_picture(recorded(IMAGE)).permute(1, 2, 0).numpy()
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
    monkeypatch.setattr(pictures, "LARGEST", 400)
    image, maps = halves(20, 40)
    with pytest.warns(PictureReduced, match="2 maps of 20 x 40 pixels are too many: refined at 10 x 20"):
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


# ---- merging


def blocks():
    """A space map of 8 x 8 pixels whose left and right half look at themselves only."""
    side = (torch.arange(8) < 4).expand(8, 8).flatten()
    return (side[:, None] == side).float() / 32


def test_two_halves_are_two_regions():
    proposals = merge_proposals(blocks(), (8, 8), stride=2)
    assert proposals.shape == (2, 8, 8)
    torch.testing.assert_close(proposals.sum((1, 2)), torch.ones(2))
    assert torch.equal(proposals[0] > 0, (torch.arange(8) < 4).expand(8, 8))
    assert len(merge_proposals(blocks(), (8, 8), threshold=0, stride=2)) == 16  # nothing is below 0
    assert len(merge_proposals(blocks(), (8, 8), threshold=1e3)) == 1
    maps = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    distance = float(divergence(maps, maps)[0, 1])
    for threshold, first in ((distance, [0.9, 0.1]), (1.01 * distance, [0.5, 0.5])):  # alike is what lies below
        found = merge_proposals(maps, (1, 2), threshold, stride=1, rounds=1)
        torch.testing.assert_close(found[0, 0], torch.tensor(first))


def test_later_rounds_merge_greedily_from_the_first():
    peaks = torch.eye(4)[torch.tensor([0, 0, 1, 2])] + 0.01
    gap = float(divergence(peaks, peaks)[0, 2])
    assert merge_alike(peaks / peaks.sum(1, keepdim=True), gap / 10).shape == (3, 4)
    merged = merge_alike(peaks, gap * 2)
    assert merged.shape == (1, 4)
    torch.testing.assert_close(merged[0], peaks.mean(0) / peaks.mean(0).sum())


def test_a_region_goes_to_its_best_map_if_that_is_above_a_half():
    maps = torch.zeros(3, 8, 8)
    maps[0, :, :4], maps[1, :, :4], maps[1, :, 4:] = 0.6, 0.7, 0.5
    found = merge_maps(maps, blocks().view(8, 8, 8, 8))
    assert torch.equal(found[1] == 1, (torch.arange(8) < 4).expand(8, 8))
    assert found[[0, 2]].sum() == 0 and found[1, :, 4:].sum() == 0
    assert torch.equal(merge_maps(maps[1:2], blocks())[0], found[1])  # one class only


# ---- prototypes


def test_each_pixel_goes_to_the_class_of_its_feature():
    dense = torch.zeros(2, 4, 4)
    dense[0, :, :2], dense[1, :, 2:] = 1, 1
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 1, 1
    found = prototypes(maps, dense, 4)
    expected = torch.zeros(3, 4, 4)
    expected[0, :, :2], expected[1, :, 2:] = 1, 1
    assert torch.equal(found, expected)  # the empty third map has no prototype
    assert torch.equal(prototypes(maps[2:], dense, 4), torch.zeros(1, 4, 4))
    assert prototypes(maps, dense, (6, 10)).shape == (3, 6, 10)
    assert torch.equal(prototypes(maps, dense, "same"), expected)


# ---- activations as a space map


def test_scores_flow_between_pixels_of_like_activations():
    """Two halves of opposite, strong features: each pixel ends with its half's mean; then min-max."""
    dense = torch.zeros(4, 4, 4)
    dense[0, :, :2], dense[1, :, 2:] = 20, 20
    similarity = activation_similarity(dense, (4, 4))
    same = torch.arange(4).expand(4, 4).flatten() < 2
    torch.testing.assert_close(similarity, (same[:, None] == same[None]).float() / 8)
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = activation_affinity(maps, dense, 1)
    means = (torch.where(same.view(4, 4), each[:, :2].mean(), each[:, 2:].mean()) for each in maps)
    expected = torch.stack([(half > half.mean()).float() for half in means])
    torch.testing.assert_close(found, expected)
    assert torch.equal(activation_affinity(maps, dense, 0), maps)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 5), st.integers(2, 9), st.integers(2, 9))
def test_rows_of_resized_activation_similarities_sum_to_one(seed, h, w, height, width):
    dense = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seed))
    similarity = activation_similarity(dense, (height, width))
    assert similarity.shape == (height * width,) * 2
    torch.testing.assert_close(similarity.sum(1), torch.ones(height * width))
    if (height, width) == (h, w):
        expected = torch.softmax(dense.flatten(1).T @ dense.flatten(1) / 3**0.5, -1)
        torch.testing.assert_close(similarity, expected)


# ---- matching


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_a_permuted_label_is_found_again(seed, classes):
    random = np.random.default_rng(seed)
    label = random.integers(0, classes, (7, 5))
    found = hungarian_match(random.permutation(classes + 3)[label], label, classes)
    np.testing.assert_array_equal(found, label)
    assert found.dtype == np.int64


def test_the_whole_picture_is_matched_at_once():
    pred = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    label = torch.tensor([[2, 2, 0, 0], [2, 0, 0, 0]], dtype=torch.uint8)
    found = hungarian_match(pred, label, 3)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [[2, 2, 0, 0], [2, 2, 2, 0]]  # row by row the second would be turned over


def test_left_over_clusters_void_and_no_cluster():
    label = np.array([[1, 1, 1, 255]], np.uint8)
    assert hungarian_match(np.array([[5, 5, 9, 9]]), label, 3).tolist() == [[1, 1, UNMATCHED, UNMATCHED]]
    assert hungarian_match(np.array([[-1, 5, 5, 5]]), label, 3).tolist() == [[UNMATCHED, 1, 1, 1]]
    assert hungarian_match(np.array([[7, 7, 8]]), np.array([[1, 1, 2]]), 3).tolist() == [[1, 1, 2]]  # by one pixel
    assert (hungarian_match(np.zeros((2, 2), int), np.full((2, 2), 255), 3) == UNMATCHED).all()
    for bad in (np.zeros((2, 3), int), np.zeros((2, 2)), np.zeros(4, int)):
        with pytest.raises(RefineError, match="whole numbers"):
            hungarian_match(bad, np.zeros((2, 2), int), 3)
    with pytest.raises(RefineError, match="num_classes is 0"):
        hungarian_match(label, label, 0)


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
        assert torch.equal(pictures.read_picture(form), expected)
    torch.testing.assert_close(pictures.read_picture(expected / 255), expected)
    assert pictures.read_picture(Image.new("L", (3, 2), 7)).unique().tolist() == [7]
    for bad in (
        np.zeros((4, 5)),
        np.zeros((4, 5, 4)),
        np.full((4, 5, 3), -0.5),
        np.full((4, 5, 3), 300.0),
        np.full((4, 5, 3), np.nan),
        np.zeros((3, 0, 3)),
    ):
        with pytest.raises(RefineError, match="expected"):
            pictures.read_picture(bad)


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
