"""Refinements that group pixels: merging, prototypes, activations as a space map, and matching of clusters."""

import numpy as np
import pytest
import torch
from goca.refine import (
    UNMATCHED,
    RefineError,
    activation_affinity,
    activation_similarity,
    hungarian_match,
    merge_maps,
    merge_proposals,
    prototypes,
)
from goca.refine.merging import divergence, merge_alike
from hypothesis import given, settings
from hypothesis import strategies as st

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
