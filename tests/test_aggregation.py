"""Resizing, layer-wise aggregation and the whole stream: closed forms, properties, and the float64 reference."""

import pytest
import reference
import torch
from attentions import attention, literal
from goca.method.aggregation import COPIES, Aggregator, Plan, storage_bytes
from goca.method.deferred import DeferredFull
from goca.method.heads import HEAD_RULES
from goca.method.layers import LAYER_RULES, LayerComparison, Reference, layer_weights
from goca.method.resizing import adjoint_keys, nearest_index, resize_keys
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE = 2e-5


def similarity(rule, ref, rows, grid, step=None):
    """Of a whole head-mean map [B, S, S] and the reference, fed in chunks."""
    comparison = LayerComparison(ref, [rule], grid)
    for queries in comparison.queries.split(step or len(comparison.queries)):
        comparison.add(queries, rows[:, queries])
    return comparison.similarities()[rule]


# ---- resizing and layers

grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(source=grids, target=grids, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_adjoint_of_resizing(source, target, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, source[0] * source[1], generator=g)
    y = torch.randn(1, 3, target[0] * target[1], generator=g)
    left = (y * resize_keys(x, source, target)).sum()
    torch.testing.assert_close(left, (adjoint_keys(y, source, target) * x).sum(), rtol=1e-4, atol=1e-4)


def test_nearest_index_by_hand():
    assert nearest_index((2, 2), (4, 2)).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert nearest_index((4, 4), (2, 2)).tolist() == [0, 2, 8, 10]


@given(values=st.lists(st.floats(-1, 10), min_size=2, max_size=6).filter(lambda v: max(v) > 0.1))
@settings(max_examples=30, deadline=None)
def test_layer_weights_are_shares(values):
    weights = layer_weights(torch.tensor([values]))[0]
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


def test_a_layer_that_is_the_reference_wins():
    feature = torch.randn(1, 8, 4, 4) * 2
    ref = Reference(feature, first_only=False, normalised=True)
    uniform = torch.full((1, 16, 16), 1 / 16)
    for rule in ("dot-product similarity", "mse", "iou-like"):
        itself, flat = (similarity(rule, ref, maps, (4, 4)) for maps in (ref.affinity, uniform))
        assert float(itself) > float(flat)


@pytest.mark.parametrize("rule", [name for name, found in LAYER_RULES.items() if found])
@pytest.mark.parametrize("grid", [(4, 6), (2, 3), (8, 12), (3, 5)])
@pytest.mark.parametrize(("first_only", "normalised"), [(False, True), (True, False)])
@pytest.mark.parametrize("step", [None, 4])
def test_similarity_agrees_with_the_equations(rule, grid, first_only, normalised, step):
    feature = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    S = attention("self", grid).head_mean()
    ref = Reference(feature, first_only, normalised)
    found = similarity(rule, ref, S, grid, step)
    Ref = reference.reference_affinity(feature[0].double(), first_only)
    resized = reference.resize_self_map(S[0].double(), grid, (4, 6), normalised)
    torch.testing.assert_close(found[0].double(), reference.similarity(Ref, resized, rule), rtol=1e-4, atol=1e-6)


def plan_of(*blocks, grid=(1, 1), layer_rule="vanilla", space=()):
    return Plan(blocks, space, grid, ("average",), (layer_rule,), "F")


def test_negative_sums_over_layers_are_cut_off_and_not_turned_round():
    maps = {"a": torch.tensor([[[1.0, -1.0, 0.5]]]), "b": torch.tensor([[[0.5, 0.5, 0.5]]])}  # summed: .75, -.25, .5
    token_maps = {block: {"average": values} for block, values in maps.items()}
    aggregator = Aggregator(plan_of("a", "b"))
    aggregator.token_maps, aggregator.grids = token_maps, dict.fromkeys(maps, (1, 1))
    torch.testing.assert_close(aggregator.attention_map().flatten(), torch.tensor([0.6, 0.0, 0.4]))


def test_what_is_held_is_counted_to_the_byte():
    cross, itself = attention("cross", (2, 3), heads=2, tokens=7), attention("self", (2, 3), heads=2)
    aggregator = Aggregator(plan_of("b", grid=(4, 4), layer_rule="mse", space=("b",)))
    aggregator.attention(cross)
    maps = 4 * 6 * 7  # one map of 6 pixels and 7 tokens
    # of a chunk: the probabilities of both heads as they are and weighed, the sum over heads and the part to be added
    assert aggregator.held_bytes == maps and aggregator.peak_bytes == maps + 4 * 6 * 7 * (2 * 2 + 2)
    aggregator.attention(itself)
    waits, space = 4 * 6 * 6, 4 * 16 * 16
    assert aggregator.held_bytes == maps + waits + space
    assert aggregator.peak_bytes == maps + waits + space + 4 * 6 * 6 * (2 * 2 + 2 + COPIES)
    aggregator.feature("F", torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert aggregator.held_bytes == maps + space  # the layer that waited has become a number
    reference_bytes = 4 * 64 * 64
    assert aggregator.peak_bytes == maps + waits + space + reference_bytes + COPIES * waits


def test_reading_a_map_back_is_counted_by_its_largest_part():
    layer = DeferredFull()
    for rows in (2, 3, 1):
        layer.add(torch.arange(rows), torch.zeros(1, rows, 6))
    assert layer.working_bytes(2) == 2 * 4 * 3 * 6


def test_storages_that_are_shared_are_counted_once():
    whole = torch.zeros(10)
    assert storage_bytes([whole[:5], whole[5:], torch.zeros(3)]) == 40 + 12


# ---- the whole stream

STREAM = [("early", (8, 6)), ("low", (4, 3)), ("ref", (8, 6)), ("late", (4, 3)), ("fine", (16, 12))]


@pytest.mark.parametrize(("first", "normalised"), [(False, True), (True, False)], ids=["paper", "released"])
def test_the_stream_agrees_with_the_equations(first, normalised):
    blocks = tuple(name for name, _ in STREAM)
    plan = Plan(blocks, ("early", "fine"), (8, 6), tuple(HEAD_RULES), tuple(LAYER_RULES), "F", first, normalised)
    aggregator = Aggregator(plan)
    feature = torch.randn(1, 6, 8, 6, generator=torch.Generator().manual_seed(9))
    selves, crosses = {}, {}
    for number, (name, grid) in enumerate(STREAM):
        selves[name] = attention("self", grid, block=name, seed=number, width=5 if number % 2 else 40)
        crosses[name] = attention("cross", grid, block=name, seed=100 + number)
        aggregator.attention(selves[name])
        if name == "ref":
            aggregator.feature("F", feature)
        aggregator.attention(crosses[name])
    assert not aggregator.deferred

    means = {name: literal(selves[name])[0].mean(0) for name in blocks}
    sizes = [grid for _, grid in STREAM]
    maps = {rule: [reference.aggregate_heads(*literal(crosses[name]), rule) for name in blocks] for rule in HEAD_RULES}
    for layer_rule in LAYER_RULES:
        weights = reference.layer_weights(
            feature[0].double(), list(means.values()), sizes, layer_rule, first, normalised
        )
        torch.testing.assert_close(aggregator.layer_weights(layer_rule)[0].double(), weights, rtol=0, atol=TOLERANCE)
        for head_rule in HEAD_RULES:
            expected = reference.aggregate_layers(maps[head_rule], sizes, weights, (8, 6))
            found = aggregator.attention_map(head_rule, layer_rule)[0].double()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if "cosine" in head_rule else 1e-4)
            assert float(found.min()) >= 0
            torch.testing.assert_close(found.sum(-1), torch.ones(8, 6, dtype=torch.float64), rtol=0, atol=1e-5)
    space = reference.space_map([means["early"], means["fine"]], [(8, 6), (16, 12)], (8, 6), normalised)
    torch.testing.assert_close(aggregator.space_map()[0].double(), space, rtol=0, atol=TOLERANCE)
