"""Per-pixel rescaling and affinity: closed forms, properties, the float64 reference, recorded outputs."""

import numpy as np
import pytest
import reference
import torch
from goca.method.rescaling import (
    RESCALE_RULES,
    apply_rule,
    gaussian_blur,
    gaussian_kernel,
    min_max,
    rank_pixels,
    rescale,
    rescale_scores,
)
from goca.refine import affinity
from hypothesis import given, settings
from hypothesis import strategies as st

DEFAULT = "sum-1 rescaling + per-token renorm+"


def token_maps(seed=0, size=6, tokens=8):
    maps = torch.rand(size, size, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return maps / maps.sum(-1, keepdim=True)


def test_shares_of_two_words():
    attention = torch.tensor([0.2, 0.3, 0.1, 0.4]).expand(4, 4, 4)
    maps = rescale(attention, [[1], [2]], [1, 2], "sum-1 rescaling")
    torch.testing.assert_close(maps[0], torch.full((4, 4), 0.75))
    torch.testing.assert_close(maps[1], torch.full((4, 4), 0.25))


def test_a_class_of_several_tokens_is_their_mean():
    attention = token_maps()
    torch.testing.assert_close(rescale(attention, [[1, 3]], [1, 3], "raw")[0], attention[..., [1, 3]].mean(-1))


def test_a_class_of_several_tokens_can_be_their_sum():
    attention = token_maps()
    torch.testing.assert_close(rescale(attention, [[1, 3]], [1, 3], "raw", "sum")[0], attention[..., [1, 3]].sum(-1))
    whole = rescale(attention, [[1, 3]], [1, 3], "sum-1 rescaling", "sum")
    torch.testing.assert_close(whole, torch.ones_like(whole))  # all content words together are everything
    first, second = (rescale(attention, [[1, 3], [2, 4]], [1, 2, 3, 4], DEFAULT, rule) for rule in ("mean", "sum"))
    torch.testing.assert_close(first, second)  # min-max takes the number of tokens away


def test_ranks_of_pixels_are_their_mean_places():
    pixels = torch.tensor([[3.0, 1.0, 1.0], [5.0, 3.0, 3.0]])
    expected = torch.tensor([[3.0, 0.5, 0.5], [5.0, 3.0, 3.0]]) / 5
    torch.testing.assert_close(rank_pixels(pixels), expected)
    assert rank_pixels(pixels.where(pixels < 5, torch.nan)).isnan().all()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_ranking_ignores_any_rising_change_of_a_map(seed):
    rule = "sum-1 rescaling + per-token ranking renorm"
    scores = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    content = torch.ones(5, 6, dtype=torch.float64)
    found, other = (apply_rule(maps, content, rule) for maps in (scores, scores.exp() * 7 - 3))
    torch.testing.assert_close(found, other)
    places = torch.linspace(0, 1, 30, dtype=torch.float64).expand(2, 30)
    torch.testing.assert_close(found.flatten(1).sort(1).values, places)


def test_a_rule_on_finished_scores_takes_their_sum_for_the_content():
    scores = torch.rand(3, 5, 5)
    torch.testing.assert_close(rescale_scores(scores, "sum-1 rescaling"), scores / scores.sum(0))
    torch.testing.assert_close(rescale_scores(scores), min_max(gaussian_blur(scores)))


def test_a_class_without_tokens_is_nan_and_others_are_not():
    maps = rescale(token_maps(), [[1], []], [1, 2], DEFAULT)
    assert not maps[0].isnan().any()
    assert maps[1].isnan().all()


def test_nothing_looked_at_scores_zero():
    attention = token_maps()
    attention[..., 1:3] = 0
    assert (rescale(attention, [[1], [2]], [1, 2], DEFAULT) == 0).all()


def test_blur_kernel():
    kernel = gaussian_kernel()
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float(kernel[2, 2] / kernel[2, 3]) == pytest.approx(np.exp(0.5 / 1.1**2), rel=1e-5)
    torch.testing.assert_close(gaussian_blur(torch.ones(2, 5, 5)), torch.ones(2, 5, 5))


@pytest.mark.parametrize("rule", RESCALE_RULES)
@pytest.mark.parametrize("seed", range(2))
def test_rules_agree_with_the_equations(rule, seed):
    attention, content = token_maps(seed), [1, 2, 4, 5]
    found = rescale(attention.float(), [[1], [2, 4], [5]], content, rule).double()
    expected = torch.stack([reference.rescale(attention, tokens, content, rule) for tokens in ([1], [2, 4], [5])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_shares_ignore_how_much_of_a_pixel_goes_to_words_at_all(seed, factor):
    attention = token_maps(seed)
    brighter = attention * torch.linspace(1, factor, 6, dtype=torch.float64)[:, None, None]
    first, second = (rescale(maps, [[1], [2]], [1, 2, 3], DEFAULT) for maps in (attention, brighter))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    assert float(first.min()) == 0
    assert float(first.max()) == pytest.approx(1)


def test_affinity_by_hand():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    S = torch.eye(4)
    S[1] = torch.tensor([0.5, 0.5, 0.0, 0.0])  # pixel 1 asks pixel 0 and itself
    assert affinity(scores, S, 1)[0].flatten().tolist() == [1.0, 0.5, 0.0, 0.0]
    assert affinity(scores, S, 2)[0].flatten().tolist() == [1.0, 0.75, 0.0, 0.0]
    assert affinity(scores, S, 0) is scores


def test_affinity_leaves_an_empty_background_alone():
    scores = torch.cat([torch.rand(2, 3, 3), torch.zeros(1, 3, 3)])
    refined = affinity(scores, torch.rand(9, 9).softmax(-1), 2)
    assert (refined[-1] == 0).all()
    assert float(refined[0].max()) == 1


@given(seed=st.integers(0, 10**6), order=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_affinity_agrees_with_the_equations(seed, order):
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, 4, 5, generator=g, dtype=torch.float64)
    S = torch.softmax(3 * torch.randn(20, 20, generator=g, dtype=torch.float64), -1)
    torch.testing.assert_close(affinity(scores, S, order), reference.affinity(scores, S, order))


def test_min_max_of_a_constant_map_is_zero_and_nan_stays():
    maps = torch.stack([torch.full((3, 3), 2.0), torch.full((3, 3), torch.nan)])
    assert (min_max(maps)[0] == 0).all()
    assert min_max(maps)[1].isnan().all()


@pytest.mark.parametrize("order", [1, 2])
def test_recorded_affinity(goldens, order):
    recorded = np.load(goldens / "set4_postprocess" / "postprocess.npz")
    found = affinity(torch.tensor(recorded["cross"]), torch.tensor(recorded["space"]), order)
    np.testing.assert_allclose(found, recorded[f"affinity/order{order}"], rtol=0, atol=1e-5)
