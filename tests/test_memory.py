"""What a capture holds: no map of all heads outlives its layer, and the most that was held is told as it was."""

import dataclasses
import weakref

import pytest
import reference
import torch
from diffusion_feature import Attention, AttentionLayer
from diffusion_feature.attention import CHUNK_BYTES, LAYOUTS
from goca.method import deferred
from goca.method.aggregation import Aggregator, Plan
from goca.method.deferred import DeferredHalf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEADS = 4


@pytest.fixture(autouse=True)
def large_maps(monkeypatch):
    """Maps here wait as large ones do."""
    monkeypatch.setattr(deferred, "SMALL", 0)


class Alive(TorchDispatchMode):
    """Follows every storage made inside: those still alive, and the most bytes alive at once."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in known and id(storage) not in self.storages:
                self.storages[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.storages.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.storages.values()))
        return result

    def largest(self):
        """Bytes of the largest that is alive."""
        return max(self.storages.values(), default=0)


def attention(layout, grid, block, seed, width=8, tokens=6, batch=1, dtype=torch.float32, weighed=True):
    g = torch.Generator().manual_seed(seed)
    image = grid[0] * grid[1]
    keys = {"self": image, "cross": tokens}.get(layout, image + tokens)
    queries = image if layout in ("self", "cross") else keys
    q, k, v = (torch.randn(batch, HEADS, n, width, generator=g).to(dtype) for n in (queries, keys, keys))
    W = torch.randn(HEADS * width, HEADS * width, generator=g).to(dtype) * (HEADS * width) ** -0.5
    result = torch.nn.functional.scaled_dot_product_attention(2 * q, k, v)
    layer = AttentionLayer(block, layout, torch.nn.Identity(), lambda: W, weighed)
    return Attention(layer, 2 * q, k, v, None, None, result, grid, **LAYOUTS[layout](image, keys))


def stream(grids, layouts=("self", "cross"), reference_after=1, batch=1, plan=None, width=8, dtype=torch.float32):
    """(block, its attentions) and where the reference comes; the plan."""
    blocks = [f"b{number}" for number in range(len(grids))]
    layers = [
        [attention(layout, grid, block, 9 * n + m, width, batch=batch, dtype=dtype) for m, layout in enumerate(layouts)]
        for n, (grid, block) in enumerate(zip(grids, blocks))
    ]
    rules = ("dot-product w/o clamp",), ("dot-product similarity",)
    made = Plan(tuple(blocks), tuple(blocks[:2]), grids[0], *rules, "F")
    return layers, dataclasses.replace(made, **(plan or {}))


def run(layers, plan, feature, reference_after=1, watch=lambda block: None):
    aggregator = Aggregator(plan)
    for number, attentions in enumerate(layers):
        for each in attentions:
            aggregator.attention(each)
            watch(each.layer.block)
        if number == reference_after:
            aggregator.feature("F", feature)
            watch("F")
    return aggregator


GRIDS = [(16, 12), (8, 6), (16, 12), (8, 6)]


@pytest.mark.parametrize("layouts", [("self", "cross"), ("text-first",), ("image-first",)], ids=["unet", "flux", "sd3"])
def test_no_map_of_all_heads_outlives_its_layer(layouts):
    layers, plan = stream(GRIDS, layouts)
    feature = torch.randn(1, 5, 16, 12)
    square = 4 * (16 * 12) ** 2  # bytes of one map in float32
    seen = []
    with Alive() as alive:
        run(layers, plan, feature, watch=lambda block: seen.append(alive.largest()))
    assert max(seen) <= square  # a mean over heads, never [heads, S, S]
    assert max(seen) == square  # and what was watched is not empty


@pytest.mark.parametrize(("chunk", "most"), [(1 << 16, 1.6), (8 << 20, 2.5)])
@pytest.mark.parametrize("layouts", [("self", "cross"), ("text-first",)], ids=["unet", "flux"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_peak_is_told_as_it_was(monkeypatch, chunk, most, layouts, batch):
    """Never less than it was, so that a bound on it holds."""
    monkeypatch.setitem(CHUNK_BYTES, "cpu", chunk)
    layers, plan = stream([(24, 20)] * 4, layouts, batch=batch)
    feature = torch.randn(batch, 5, 24, 20)
    handed = sum(a.query.nbytes + a.key.nbytes for each in layers for a in each if a.layer.layout == "self")
    with Alive() as alive:
        aggregator = run(layers, plan, feature)
    assert 0.97 * alive.peak <= aggregator.peak_bytes <= most * alive.peak + handed


def test_a_chunk_bounds_what_a_layer_takes(monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1 << 16)
    layer = attention("self", (40, 40), "b", 0)
    plan = Plan((), ("b",), (8, 8), ("average",), ("vanilla",), "F")
    with Alive() as alive:
        Aggregator(plan).attention(layer)
    assert alive.peak < 1 << 20  # all heads' maps: 41 MB


def test_a_small_map_waits_as_it_is(monkeypatch):
    plan = Plan(("b",), (), (8, 8), ("average",), ("mse",), "F")
    layer = attention("self", (8, 8), "b", 0)
    feature = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    similarities, held = [], []
    for small in (4 * 64 * 64, 4 * 64 * 64 - 1):
        monkeypatch.setattr(deferred, "SMALL", small)
        aggregator = Aggregator(plan)
        aggregator.attention(layer)
        held.append(sum(tensor.nbytes for tensor in aggregator.deferred["b"].tensors))
        aggregator.feature("F", feature)
        similarities.append(aggregator.similarities["mse"]["b"])
        assert aggregator.held_bytes == 0
    assert held[0] == 4 * 64 * 64 > held[1]
    torch.testing.assert_close(*similarities)


def test_a_waiting_layer_takes_the_smaller_form():
    plan = Plan(("b",), (), (8, 8), ("average",), ("mse",), "F")
    held = {}
    for width in (2, 40):
        aggregator = Aggregator(plan)
        aggregator.attention(attention("self", (8, 8), "b", 0, width))
        held[width] = sum(tensor.nbytes for tensor in aggregator.deferred["b"].tensors)
    assert held[2] == 2 * 4 * HEADS * 2 * 64  # queries and keys
    assert held[40] == 2 * 64 * 64 + 4 * 64  # the mean map in 16 bits, a scale per row


def test_a_map_in_16_bits_keeps_small_values_and_uniform_rows():
    layer = attention("self", (6, 5), "b", 0)
    rows = torch.stack([torch.full((30,), 1 / 30), torch.softmax(torch.arange(30.0) * -0.6, 0), torch.zeros(30)])
    rows = rows.repeat(10, 1)[None]
    held = DeferredHalf(layer)
    held.add(torch.arange(30), rows)
    found = torch.cat([part for _, part in held.rows(torch.arange(30))], dim=1)
    torch.testing.assert_close(found, rows, rtol=2**-11, atol=0)
    torch.testing.assert_close(found[:, 0], rows[:, 0], rtol=2e-7, atol=0)


def expected(layers, plan, feature):
    """Token maps and space map of one picture, by the equations in float64."""
    crosses, means, grids = [], [], [attentions[0].grid for attentions in layers]
    for attentions in layers:
        for a in attentions:
            q, k, v = (x[0].double() for x in (a.query[:, :, a.image_queries], a.key, a.value))
            A = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1)
            if a.image_keys is not None:
                means.append(A[..., a.image_keys].mean(0))
            if a.text_keys is not None and a.image_keys is None:
                W = a.layer.out_proj().double().T
                crosses.append(reference.aggregate_heads(A, v, W, plan.head_rules[0]))
            elif a.text_keys is not None:
                crosses.append(A[..., a.text_keys].mean(0))
    weights = reference.layer_weights(feature[0].double(), means, grids, plan.layer_rules[0], False, True)
    space = reference.space_map(means[:2], grids[:2], plan.grid, True)
    return reference.aggregate_layers(crosses, grids, weights, plan.grid), space, weights


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3), (torch.float16, 5e-3)], ids=str
)
@pytest.mark.parametrize("layouts", [("self", "cross"), ("text-first",)], ids=["unet", "joint"])
@pytest.mark.parametrize("width", [2, 40])  # layers wait as queries and keys, or as maps
def test_every_precision_agrees_with_the_equations(dtype, within, layouts, width):
    """The numbers of a 16-bit model are taken as they are: what is compared is the method's own rounding."""
    heads = {"head_rules": ("average",)} if layouts == ("text-first",) else {}
    layers, plan = stream([(10, 14), (5, 7), (10, 14), (5, 7), (10, 14)], layouts, plan=heads, width=width, dtype=dtype)
    feature = torch.randn(1, 6, 10, 14, generator=torch.Generator().manual_seed(5)).to(dtype)
    aggregator = run(layers, plan, feature, reference_after=2)
    maps, space, weights = expected(layers, plan, feature)
    torch.testing.assert_close(aggregator.layer_weights(plan.layer_rules[0])[0].double(), weights, rtol=0, atol=within)
    torch.testing.assert_close(aggregator.attention_map()[0].double(), maps, rtol=0, atol=within)
    torch.testing.assert_close(aggregator.space_map()[0].double(), space, rtol=0, atol=within)


def test_a_batch_equals_its_pictures():
    layers, plan = stream(GRIDS, batch=3)
    feature = torch.randn(3, 5, 8, 6, generator=torch.Generator().manual_seed(2))
    whole = run(layers, plan, feature)
    for number in range(3):
        one = slice(number, number + 1)
        alone = [
            [
                dataclasses.replace(a, query=a.query[one], key=a.key[one], value=a.value[one], result=a.result[one])
                for a in each
            ]
            for each in layers
        ]
        single = run(alone, plan, feature[one])
        torch.testing.assert_close(whole.attention_map()[number], single.attention_map()[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.space_map()[number], single.space_map()[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 32), (24, 64)])
def test_pictures_of_any_side_ratio(tmp_path, size):
    """A tiny pipeline on a picture that is not square: maps keep rows and columns."""
    from diffusion_feature import FeatureExtractor
    from goca.prompts import PromptAnnotation
    from goca.requests import Request
    from goca.segmenter import Segmenter
    from PIL import Image
    from tiny import SD_CONFIG, save_sd

    segmenter = Segmenter.from_pretrained(str(save_sd(tmp_path / "sd")), SD_CONFIG, dtype="float32")
    fx = segmenter.extractor
    assert isinstance(fx, FeatureExtractor)
    fx.img_size = size
    picture = Image.new("RGB", (size[1], size[0]), "teal")
    rows, columns = size[0] // 4, size[1] // 4
    plan = dataclasses.replace(segmenter.plan(), grid=(rows, columns))
    aggregator = Aggregator(plan)
    annotation = PromptAnnotation("cat, grass", [1, 3], {1: [1]}, [], [])
    segmenter.forward([Request(picture, annotation, image_id="x")], aggregator)
    assert aggregator.attention_map().shape[:3] == (1, rows, columns)
    assert aggregator.space_map().shape == (1, rows * columns, rows * columns)
    assert set(aggregator.grids.values()) == {(rows, columns), (rows // 2, columns // 2)}


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_a_chunk_without_a_row_that_is_used(monkeypatch, chunk):
    """A grid twice as fine as the maps': chunks of less than a row lie between the rows that the space map takes."""
    layers, plan = stream([(16, 16), (8, 8)], layouts=("text-first",), plan={"grid": (8, 8)})
    feature = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = run(layers, plan, feature)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * chunk * layers[0][0].key.shape[2])
    parts = run(layers, plan, feature)
    torch.testing.assert_close(parts.space_map(), whole.space_map())
    torch.testing.assert_close(parts.attention_map(), whole.attention_map())
