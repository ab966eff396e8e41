"""Denoisers with adapters or in few bits: heads are weighed by what their output projections really apply."""

import copy
import importlib

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusion_feature import ExtractorError, WrongFamily
from diffusion_feature.weights import is_plain, weight_of
from families import FAMILIES
from goca.generation.trace import trace
from goca.segmenter import Segmenter
from PIL import Image
from torch import nn

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8))
C = 64  # bitsandbytes packs 64 numbers at a time


def needs(*libraries):
    found = [importlib.import_module(name) for name in libraries if importlib.util.find_spec(name)]
    if len(found) < len(libraries):
        pytest.skip(f"pip install {' '.join(libraries)}")
    return found[0]


def linear(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(C, C).to(dtype).eval()


@pytest.fixture
def pipe(tiny_sd):
    found = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


def score_maps(pipe, config=tiny.SD_CONFIG):
    segmenter = Segmenter.from_pretrained(pipe, config)
    return segmenter.score_maps(PICTURE, segmenter.read_prompt("cat, grass, sky")[0])


# ---- one layer


class Net(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.lin = linear(dtype)

    def forward(self, x):
        return self.lin(x)


ADAPTERS = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_dropout": 0.1, "init_lora_weights": False}),
    "DoRA": ("LoraConfig", {"r": 4, "use_dora": True, "init_lora_weights": False}),
    "LoHa": ("LoHaConfig", {"r": 4, "init_weights": False}),
    "LoKr": ("LoKrConfig", {"r": 4, "init_weights": False}),
    "IA3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, "r": 0, "init_weights": False}),
}


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapted_layer_is_worth_what_it_is_merged(kind, dtype, within):
    torch.manual_seed(0)  # the adapter has random weights
    peft = needs("peft")
    name, settings = ADAPTERS[kind]
    net = peft.get_peft_model(Net(dtype), getattr(peft, name)(target_modules=["lin"], **settings)).eval()
    found = weight_of(net.base_model.model.lin)
    merged = net.merge_and_unload().lin.weight.detach().float()
    assert (merged - linear(dtype).weight.detach()).abs().max() > 0.02  # it matters
    torch.testing.assert_close(found, merged, rtol=0, atol=within * float(merged.abs().max()))


def sizes(layer):
    return layer.in_features, layer.out_features, layer.bias is not None


def quantised_4bit(base):
    needs("bitsandbytes")
    import bitsandbytes as bnb

    made = bnb.nn.Linear4bit(*sizes(base), compute_dtype=base.weight.dtype, quant_type="nf4")
    made.load_state_dict(base.state_dict())
    made = made.to("cpu").eval()
    return made, bnb.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)


def quantised_8bit(base):
    needs("bitsandbytes")
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(*sizes(base), has_fp16_weights=False, threshold=6.0)
    made.load_state_dict(base.state_dict())
    made = made.to("cpu").eval()
    return made, made.weight.CB.float() * made.weight.SCB[:, None].float() / 127


def quantised_gguf(base):
    gguf = needs("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quantize(base.weight.detach().float().numpy(), kind)
    made = GGUFLinear(*sizes(base), compute_dtype=base.weight.dtype)
    made.weight, made.bias = GGUFParameter(torch.from_numpy(packed), quant_type=kind), base.bias
    return made.eval(), torch.from_numpy(gguf.dequantize(packed, kind))


def quantised_torchao(base):
    needs("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    made = nn.Sequential(copy.deepcopy(base))
    quantize_(made, Int8WeightOnlyConfig())
    return made[0], made[0].weight.dequantize()


QUANTISED = {"nf4": quantised_4bit, "int8": quantised_8bit, "gguf": quantised_gguf, "torchao": quantised_torchao}


def types(module):
    settings = {name: value for name, value in vars(module).items() if isinstance(value, bool | torch.dtype)}
    return settings | {name: weight.dtype for name, weight in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_stored_layer_is_worth_what_it_is_dequantised(kind, dtype):
    layer, expected = QUANTISED[kind](linear(dtype))
    before = types(layer)
    found, expected = weight_of(layer), expected.detach().float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
    assert types(layer) == before


def test_a_plain_layer_is_taken_as_it_lies():
    layer = linear()
    assert weight_of(layer) is layer.weight


def test_a_layer_that_someone_changed():
    """A patched forward (as some LoRA tools do), a hook, a parametrisation: none is in `.weight`."""
    patched, hooked = linear(), linear()
    patched.forward = lambda x: nn.Linear.forward(patched, x) + x
    hooked.register_forward_hook(lambda module, args, output: output + args[0])
    for layer in (patched, hooked):
        assert not is_plain(layer)
        torch.testing.assert_close(weight_of(layer), layer.weight + torch.eye(C), rtol=0, atol=1e-5)


def test_a_layer_that_is_not_linear():
    class Bent(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(ExtractorError, match=r"a Bent, is not linear: .* head_method='average'"):
        weight_of(Bent(C, C))
    with pytest.raises(ExtractorError, match="it is not a linear layer"):
        weight_of(nn.Identity())


# ---- a whole denoiser


def lora(pipe, seed=1):
    peft = needs("peft")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        pipe.unet.add_adapter(config, f"adapter{seed}")


def test_a_live_adapter_and_a_merged_one_are_the_same(pipe):
    plain = score_maps(pipe)
    lora(pipe)
    live = score_maps(pipe)
    assert (live - plain).abs().max() > 0.1
    pipe.unet.fuse_lora()
    torch.testing.assert_close(live, score_maps(pipe), rtol=0, atol=1e-4)
    pipe.unet.unfuse_lora()
    pipe.unet.disable_lora()
    torch.testing.assert_close(plain, score_maps(pipe), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_of_every_family(name, tmp_path):
    peft, family = needs("peft"), FAMILIES[name]
    pipe = diffusers.DiffusionPipeline.from_pretrained(family.save(tmp_path / name))
    part = "unet" if "unet" in pipe.components else "transformer"
    plain = score_maps(pipe, family.config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        targets = ["to_out.0", "proj_out"] if name == "flux" else ["to_out.0"]
        config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        adapted = peft.get_peft_model(getattr(pipe, part), config)  # injects the layers
    live = score_maps(pipe, family.config)
    assert (live - plain).abs().max() > 1e-3
    setattr(pipe, part, adapted)  # as a PeftModel, which peft's own documentation hands to pipelines
    torch.testing.assert_close(live, score_maps(pipe, family.config), rtol=0, atol=1e-5)
    with pytest.raises(WrongFamily, match=rf"`pipe.{part} = pipe.{part}.base_model.model`"):
        trace(pipe, family.config)
    setattr(pipe, part, adapted.base_model.model)
    trace(pipe, family.config)
    adapted.merge_adapter()
    torch.testing.assert_close(live, score_maps(pipe, family.config), rtol=0, atol=1e-3)


def test_two_adapters_and_their_scales(pipe):
    lora(pipe, 1)
    lora(pipe, 2)
    pipe.unet.set_adapters(["adapter1", "adapter2"], [0.7, -0.4])
    live = score_maps(pipe)
    pipe.unet.fuse_lora()
    torch.testing.assert_close(live, score_maps(pipe), rtol=0, atol=1e-4)


def test_an_adapter_that_comes_after_the_segmenter(pipe):
    segmenter = Segmenter.from_pretrained(pipe, tiny.SD_CONFIG)
    annotation, _ = segmenter.read_prompt("cat, grass, sky")
    lora(pipe)
    torch.testing.assert_close(segmenter.score_maps(PICTURE, annotation), score_maps(pipe), rtol=0, atol=1e-6)


def replace_linears(module, make):
    """Each attention's projections as `make(linear)` says."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.in_features % C == 0:
                setattr(parent, name, make(child))


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_denoiser_in_few_bits(kind, pipe):
    """The same maps as of a plain denoiser with the dequantised weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet = tiny.unet(block_out_channels=(C, C)).eval()
    plain = copy.deepcopy(pipe.unet)

    def dequantised(layer):
        weight = QUANTISED[kind](layer)[1]
        layer.weight = nn.Parameter(weight.detach().to(layer.weight))
        return layer

    replace_linears(plain, dequantised)
    replace_linears(pipe.unet, lambda layer: QUANTISED[kind](layer)[0])
    assert not is_plain(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0])
    found = score_maps(pipe)
    pipe.unet = plain
    torch.testing.assert_close(found, score_maps(pipe), rtol=0, atol=3e-2)


def test_weights_in_fp8_that_are_cast_layer_by_layer(pipe):
    """fp8 as stored, bfloat16 as computed: as good as bfloat16 weights that were rounded to fp8."""
    rounded = copy.deepcopy(pipe.unet)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    found = score_maps(pipe)
    stored = dict(pipe.unet.named_parameters())
    for name, weight in rounded.named_parameters():
        weight.data = stored[name].data.to(torch.bfloat16)
    pipe.unet = rounded
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(found, score_maps(pipe), rtol=0, atol=1e-6)
    assert stored["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("kind", ["block_level", "leaf_level", "disk"])
def test_weights_that_wait_in_groups(kind, pipe, tmp_path):
    expected = score_maps(pipe)
    more = {"offload_to_disk_path": str(tmp_path)} if kind == "disk" else {}
    level = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    level["offload_type"] = "leaf_level" if kind == "disk" else kind
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), **level, **more)
    # weights read from disk lie at other addresses, where kernels may round otherwise: 2e-5 was seen on AVX2
    torch.testing.assert_close(score_maps(pipe), expected, rtol=0, atol=1e-4 if kind == "disk" else 1e-5)
