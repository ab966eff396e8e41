"""Layer weights by some rows of the reference affinity: the same as the exact rules on these rows alone."""

import reference
import torch
from goca import Segmenter
from goca.config import ConfigError, load_config
from goca.method.layers import LAYER_RULES, LayerComparison, Reference
from goca.method.resizing import sample_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx, mark, raises

RULES = [rule for rule, similarity in LAYER_RULES.items() if similarity is not None]
IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5))


@given(rows=st.integers(1, 200), count=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_one_row_of_each_run(rows, count):
    picked = sample_rows(rows, count)
    n = min(rows, count)
    assert (picked * n // rows).tolist() != [] and len(picked) == n
    edges = [i * rows // n for i in range(n + 1)]
    assert all(low <= row < high for row, low, high in zip(picked.tolist(), edges, edges[1:]))


@mark.parametrize("grid", [(6, 8), (12, 8), (3, 4), (5, 7)])
@mark.parametrize("rule", RULES)
@mark.parametrize("normalised", [True, False])
def test_similarity_is_that_of_the_sampled_rows(rule, grid, normalised):
    g = torch.Generator().manual_seed(2)
    feature = torch.randn(1, 5, 6, 8, generator=g)
    S = torch.randn(grid[0] * grid[1], grid[0] * grid[1], generator=g).softmax(-1)
    picked = sample_rows(48, 10)
    resized = reference.resize_self_map(S.double(), grid, (6, 8), normalised)[picked]
    expected = reference.similarity(reference.reference_affinity(feature[0].double(), False)[picked], resized, rule)
    comparison = LayerComparison(Reference(feature, False, normalised, count=10), [rule], grid)
    for queries in torch.arange(len(S)).split(7):  # other rows may be among those that come
        comparison.add(queries, S[None, queries])
    assert float(comparison.similarities()[rule]) == approx(float(expected), rel=1e-4)
    assert len(comparison.queries) <= 10


def test_as_many_rows_as_there_are_is_exact():
    exact, same, few = (
        Segmenter.from_pretrained("goca:mini-sd", {"of": "mini-sd", "rows": rows}).capture(IMAGE, annotation())
        for rows in (None, 256, 64)
    )
    rule = "dot-product similarity"
    torch.testing.assert_close(same.layer_weights(rule), exact.layer_weights(rule), rtol=0, atol=1e-6)
    off = (few.layer_weights(rule) - exact.layer_weights(rule)).abs().sum()
    assert 0 < float(off) < 0.1
    assert torch.equal(few.space_map(), exact.space_map())


def annotation():
    from goca import PromptAnnotation

    return PromptAnnotation("star, snow, wall", [1, 3, 5], {1: [1], 2: [3]}, [0, 6], [[5]])


def test_rows_are_counted():
    assert load_config("mini-sd").rows is None
    with raises(ConfigError, match="rows"):
        load_config("mini-sd", rows=0)
