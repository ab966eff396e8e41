"""What an accelerator would wait for, seen on a CPU: every tensor of a forward is on torch's "meta" device, which
computes nothing; indices that are made on the CPU must be copied once, and never meet tensors that lie elsewhere."""

import pytest
import torch
from diffusion_feature import attention as attentions
from diffusion_feature.attention import Attention, exact_products
from diffusion_feature.backbone import AttentionLayer
from diffusion_feature.latents import STEADY, encode
from goca.guidance.rate import guidance_rate
from goca.guidance.segmentors import PromptTokens, placed
from goca.method.aggregation import Aggregator, Plan
from goca.method.rescaling import rescale
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
TEXT, HEADS, WIDTH = 7, 2, 8
COPIES = ("_to_copy", "copy_")


class Watch(TorchDispatchMode):
    """Notes every copy from the CPU to the device, and every other operation whose tensors lie on both."""

    def __init__(self):
        super().__init__()
        self.copied, self.mixed = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {each.device.type for each in tree_leaves((args, kwargs)) if torch.is_tensor(each) and each.ndim}
        made = {each.device.type for each in tree_leaves(result) if torch.is_tensor(each)}
        name = func.overloadpacket.__name__
        if name in COPIES and "cpu" in given and "meta" in made:
            self.copied.append(name)
        elif given == {"cpu", "meta"}:
            self.mixed.append(name)
        return result


def layer(block, layout, side, dtype=torch.float16):
    image = side * side
    keys = {"self": image, "cross": TEXT, "text-first": image + TEXT}[layout]
    queries = keys if layout == "text-first" else image

    def drawn(tokens):
        return torch.empty(1, HEADS, tokens, WIDTH, dtype=dtype, device=META)

    projection = torch.empty(HEADS * WIDTH, HEADS * WIDTH, dtype=dtype, device=META)
    tokens = attentions.LAYOUTS[layout](image, keys)
    known = AttentionLayer(block, layout, torch.nn.Identity(), lambda: projection)
    query, key, value, result = drawn(queries), drawn(keys), drawn(keys), drawn(queries)
    return Attention(known, query, key, value, None, None, result, (side, side), **tokens)


def forward(rules):
    """Layers of several grids, before and after the reference feature; all that is asked of them afterwards."""
    sides = {"a": 4, "b": 8, "c": 16}
    plan = Plan(tuple(sides), ("b", "c"), (8, 8), ("dot-product w/o clamp", "average"), rules, "F")
    aggregator = Aggregator(plan)
    for block, side in sides.items():
        for layout in ("self", "cross"):
            aggregator.attention(layer(block, layout, side))
        if block == "b":
            aggregator.feature("F", torch.empty(1, 6, 8, 8, dtype=torch.float16, device=META))
    maps = aggregator.attention_map()[0]
    aggregator.space_map()
    rescale(maps, [[1, 2], [4]], [1, 2, 4], "sum-1 rescaling + per-token renorm+")
    return aggregator


@pytest.mark.parametrize("chunk", [1 << 20, 1 << 14])
def test_indices_are_copied_to_the_device_once(monkeypatch, chunk):
    monkeypatch.setattr(attentions, "LARGE_CHUNK", chunk)  # one chunk of a layer's queries, or many
    rules = ("dot-product similarity", "mse", "iou-like")
    with Watch() as first:
        forward(rules)
    with Watch() as later:
        forward(rules)
    assert first.mixed == later.mixed == []
    assert later.copied == []


def test_joint_attention_too():
    plan = Plan(("a",), ("a",), (4, 4), ("average",), ("dot-product similarity",), "F")
    with Watch() as watch:
        aggregator = Aggregator(plan)
        aggregator.feature("F", torch.empty(1, 6, 8, 8, device=META))
        aggregator.attention(layer("a", "text-first", 8))
        aggregator.attention_map()
    assert watch.mixed == []


def test_guidance_copies_nothing_per_step():
    def step():
        noise, masks = torch.empty(1, 4, 16, 16, device=META), torch.empty(1, TEXT, 8, 8, device=META)
        tokens = PromptTokens((1, 2, 4), 0)
        placed(torch.empty(len(tokens.kept), 8, 8, device=META), tokens, TEXT)
        return guidance_rate(noise, noise, masks, masks[:, :1], 5.0)

    step()
    with Watch() as later:
        step()
    assert later.copied == later.mixed == []


def test_queries_and_keys_are_widened_once_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(attentions, "LARGE_CHUNK", 1 << 14)
    widened = []

    class Wide(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ == "_to_copy" and args[0].dtype in attentions.HALVES:
                widened.append(args[0].shape)
            return result

    seen = layer("a", "self", 16)
    assert len(list(seen.chunks())) > 2
    with Wide():
        seen.head_mean()
    assert widened == [seen.query.shape, seen.key.shape]
    assert seen.working_bytes() > layer("a", "self", 16, torch.float32).working_bytes()


@pytest.mark.parametrize("dtype", attentions.HALVES)
def test_exact_products_are_the_products(dtype):
    """Of 16-bit numbers: scaling before or after makes no difference but for rounding in float32."""
    query, key = (torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (0, 1))
    before = torch.backends.cuda.matmul.fp32_precision
    found = exact_products(query.float(), key.float(), 0.3)
    assert torch.backends.cuda.matmul.fp32_precision == before
    torch.testing.assert_close(found.double(), 0.3 * query.double() @ key.double().mT, rtol=1e-5, atol=1e-5)
    tf32 = query.float().view(torch.int32) & 0x1FFF  # the bits that TF32 drops
    assert not tf32.any()


@pytest.mark.parametrize(("steady", "threads"), [(True, 1), (False, 2)])
def test_large_images_are_encoded_with_all_threads(steady, threads):
    class Vae(torch.nn.Linear):
        def encode(self, pictures):
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert encode(Vae(1, 1), torch.zeros(1, 3, 8, 8), steady) == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert 512 * 512 <= STEADY < 1024 * 1024
