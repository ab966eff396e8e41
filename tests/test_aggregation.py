"""Head-wise and layer-wise aggregation: closed forms, properties, and the float64 reference."""

import dataclasses

import pytest
import reference
import torch
from diffusion_feature import Attention, AttentionLayer
from diffusion_feature.attention import CHUNK_BYTES, LAYOUTS
from diffusion_feature.errors import AttentionNotSeen
from diffusion_feature.tap import AttentionTap, check_rebuilt
from goca.method.aggregation import COPIES, Aggregator, Plan, aggregate_heads, storage_bytes, weigh_heads
from goca.method.deferred import DeferredFull
from goca.method.heads import HEAD_RULES, HeadOutputs, head_weights
from goca.method.layers import LAYER_RULES, LayerComparison, Reference, layer_weights
from goca.method.resizing import adjoint_keys, nearest_index, resize_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Everything

TOLERANCE = 2e-5


def attention(layout, grid, heads=3, width=5, tokens=7, block="b", seed=0, dtype=torch.float32, sharp=2.0):
    """A random attention as the tap would hand it over."""
    g = torch.Generator().manual_seed(seed)
    S = grid[0] * grid[1]
    K = S if layout == "self" else tokens
    q, k, v = (torch.randn(1, heads, n, width, generator=g, dtype=torch.float64) for n in (S, K, K))
    q = q * sharp
    W = torch.randn(heads * width + 2, heads * width, generator=g, dtype=torch.float64)
    q, k, v, W = (x.to(dtype) for x in (q, k, v, W))
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    layer = AttentionLayer(block, layout, torch.nn.Identity(), lambda: W)
    return Attention(layer, q, k, v, None, None, result, grid, **LAYOUTS[layout](S, K))


def similarity(rule, ref, rows, grid, step=None):
    """Of a whole head-mean map [B, S, S] and the reference, fed in chunks."""
    comparison = LayerComparison(ref, [rule], grid)
    for queries in comparison.queries.split(step or len(comparison.queries)):
        comparison.add(queries, rows[:, queries])
    return comparison.similarities()[rule]


def literal(a):
    """A [H, S, K], V [H, K, d], W [H*d, D] of an attention, in float64."""
    q, k, v = (x[0].double() for x in (a.query, a.key, a.value))
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1), v, a.layer.out_proj().double().T


# ---- heads


def two_heads(second):
    values = torch.randn(1, 2, 4, 3)
    values[:, 1] *= second
    return HeadOutputs(values, torch.eye(6), torch.randn(1, 2, 5, 3) * torch.tensor([1.0, second])[:, None, None])


@pytest.mark.parametrize("rule", ["l2-norm", "dot-product", "dot-product w/o clamp", "dot-product + VW"])
def test_a_silent_head_has_no_weight(rule):
    weights = head_weights(two_heads(0.0), rule)
    torch.testing.assert_close(weights[0, 0], torch.ones(4))
    torch.testing.assert_close(weights[0, 1], torch.zeros(4))


def test_opposed_heads_take_negative_weight_only_without_clamp():
    values = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    heads = HeadOutputs(values, torch.ones(1, 2), values)  # o = 2 and -1, O = 1
    assert head_weights(heads, "dot-product w/o clamp").flatten().tolist() == [2.0, -1.0]
    assert head_weights(heads, "dot-product").flatten().tolist() == [1.0, 0.0]
    assert head_weights(heads, "average").flatten().tolist() == [0.5, 0.5]


def test_clamped_heads_that_all_vanish_weigh_one_each():
    heads = HeadOutputs(torch.zeros(1, 2, 1, 3), torch.eye(6), torch.randn(1, 2, 4, 3))
    assert head_weights(heads, "dot-product").flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", HEAD_RULES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_head_weights_sum_to_one_and_ignore_scale(rule, seed, scale):
    a = attention("cross", (2, 3), seed=seed, dtype=torch.float64)
    weights = head_weights(HeadOutputs(a.result, a.layer.out_proj(), a.value), rule)
    scaled = head_weights(HeadOutputs(a.result * scale, a.layer.out_proj(), a.value * scale), rule)
    sums = weights.sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-4 * float(weights.abs().max().clamp(min=1)))
    torch.testing.assert_close(scaled, weights, rtol=1e-3, atol=1e-3 * float(weights.abs().max()))


@pytest.mark.parametrize("rule", HEAD_RULES)
@pytest.mark.parametrize("seed", range(3))
def test_heads_agree_with_the_equations(rule, seed):
    a = attention("cross", (4, 5), seed=seed)
    A, V, W = literal(a)
    found = head_weights(HeadOutputs(a.result, a.layer.out_proj(), a.value), rule)[0].T.double()
    expected = reference.head_weights(A, V, W, rule)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=0, atol=TOLERANCE * scale**2)
    maps = aggregate_heads(a, [rule])[rule][0].double()
    torch.testing.assert_close(maps, reference.aggregate_heads(A, V, W, rule), rtol=0, atol=TOLERANCE * scale**2)


@pytest.mark.parametrize("chunk", [1, 5, 24, 48, 72])  # rows of 24 keys
def test_chunks_of_queries_and_heads_change_nothing(monkeypatch, chunk):
    cross, self_ = attention("cross", (4, 6)), attention("self", (4, 6))
    rule = "dot-product w/o clamp"
    maps, mean = aggregate_heads(cross, [rule])[rule], self_.head_mean()
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 24 * chunk)
    assert len(list(self_.chunks())) == -(-24 // min(chunk, 24))
    assert next(len(heads) for _, heads in self_.chunks()) == (1 if chunk >= 3 * 24 else 2 if chunk >= 2 * 24 else 3)
    torch.testing.assert_close(aggregate_heads(cross, [rule])[rule], maps)
    torch.testing.assert_close(self_.head_mean(), mean)


def joint(layout="text-first"):
    """One image token and one text token, two heads of width 1; the text's values are 3 and 1, the image's 1 and 3."""
    values = torch.tensor([[3.0, 1.0], [1.0, 3.0]])  # [head, text or image]
    values = values if layout == "text-first" else values.flip(1)
    same = torch.zeros(1, 2, 2, 1)  # every logit is 0, so both keys are seen alike
    result = values.mean(1)[None, :, None, None].expand(1, 2, 2, 1)
    layer = AttentionLayer("b", layout, torch.nn.Identity(), lambda: torch.ones(1, 2))
    return Attention(layer, same, same, values[None, ..., None], None, None, result, (1, 1), **LAYOUTS[layout](1, 2))


@pytest.mark.parametrize("layout", ["text-first", "image-first"])
def test_heads_of_joint_attention_are_weighed_by_the_values_of_the_image(layout):
    # o = 2 and 2, so only the values tell: |V W| is 1 and 3 over the image, 3 and 1 over the text
    weights = weigh_heads(joint(layout).rows(), ["dot-product + VW"])["dot-product + VW"]
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.25, 0.75]))


def test_heads_that_cannot_be_weighed_are_averaged():
    layer = dataclasses.replace(joint().layer, weighed=False)
    found = weigh_heads(dataclasses.replace(joint(), layer=layer).rows(), ["dot-product + VW", "average"])
    assert {rule: weights.flatten().tolist() for rule, weights in found.items()} == {rule: [0.5, 0.5] for rule in found}


# ---- masks

MASKS = {  # the first key is not seen, or not by the first query, or not by the first head
    "key": torch.tensor([False, True, True]).view(1, 1, 1, 3),
    "query": torch.tensor([[False, True, True], [True, True, True]]).view(1, 1, 2, 3),
    "head": torch.tensor([[False, True, True], [True, True, True]]).view(1, 2, 1, 3),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("added", [False, True])
def test_what_a_mask_hides_is_not_seen(kind, added):
    a = attention("cross", (1, 2), heads=2, tokens=3)
    mask = torch.zeros(MASKS[kind].shape).masked_fill(~MASKS[kind], -torch.inf) if added else MASKS[kind]
    result = torch.nn.functional.scaled_dot_product_attention(a.query, a.key, a.value, mask)
    masked = dataclasses.replace(a, mask=mask, result=result)
    found, seen = masked.probabilities(), MASKS[kind].expand(1, 2, 2, 3)
    assert bool((found[~seen] == 0).all()) and bool((found[seen] > 0).all())
    torch.testing.assert_close(found @ a.value, result)
    check_rebuilt(masked)  # as the model has it
    with pytest.raises(AttentionNotSeen, match="differs from the model's by"):
        check_rebuilt(dataclasses.replace(masked, mask=None))
    torch.testing.assert_close(masked.rows(torch.tensor([1])).probabilities(), found[:, :, 1:])
    torch.testing.assert_close(masked.probabilities(slice(1, 2), slice(1, 2)), found[:, 1:, 1:])


def test_nan_is_not_taken_for_rebuilt():
    a = attention("cross", (1, 2))
    with pytest.raises(AttentionNotSeen, match="the model's own output holds nan"):
        check_rebuilt(dataclasses.replace(a, result=a.result * torch.nan))
    with pytest.raises(AttentionNotSeen, match="differs from the model's by nan"):
        check_rebuilt(dataclasses.replace(a, query=a.query * torch.nan))


class Attending(torch.nn.Module):
    """An attention module of a denoiser, and no more."""

    def forward(self, tokens):
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_a_joint_attention_without_room_for_a_text_is_refused():
    module, tokens = Attending(), torch.randn(1, 1, 5, 2, generator=torch.Generator().manual_seed(0))
    layers = [AttentionLayer("b", "text-first", module, lambda: torch.eye(2))]
    with AttentionTap(layers, {}, seen := Everything(), (2, 2)):
        module(tokens)
    assert seen.attentions[0].grid == (2, 2) and seen.attentions[0].text_keys == slice(0, 1)
    refused = pytest.raises(AttentionNotSeen, match="4 tokens are too few for 2 x 2 image tokens and a text")
    with refused, AttentionTap(layers, {}, Everything(), (2, 2)):
        module(tokens[:, :, :4])


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
