"""Head-wise aggregation: closed forms, properties, the float64 reference, and masks."""

import dataclasses

import pytest
import reference
import torch
from attentions import attention, literal
from diffusion_feature import Attention, AttentionLayer
from diffusion_feature.attention import CHUNK_BYTES, LAYOUTS
from diffusion_feature.errors import AttentionNotSeen
from diffusion_feature.tap import AttentionTap, check_rebuilt
from goca.method.aggregation import aggregate_heads, weigh_heads
from goca.method.heads import HEAD_RULES, HeadOutputs, head_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Everything

TOLERANCE = 2e-5


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
