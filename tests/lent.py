"""A pipeline that is lent: segmenting, tracing and guiding with it, and following what a refusal says."""

import re

import diffusers
import numpy as np
import torch
from families import FAMILIES
from goca.generation.trace import trace
from goca.guidance import SemanticGuidance
from goca.segmenter import Segmenter
from PIL import Image
from torch import nn

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8))
UNBINNED = {"use_resolution_binning": False}
CALLS = {"pixart": UNBINNED, "hunyuan": UNBINNED, "flux": {"max_sequence_length": 64}}
GUIDED = ("sd", "sd21", "sdxl", "pixart")  # families that semantic-aware guidance is for


def load(folder, **more):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def state(pipe):
    """Whatever a use might change: identities, types, devices, values, modes, hooks, processors, methods, settings."""
    found = {"class": type(pipe), "vars": {key: id(value) for key, value in vars(pipe).items() if key[0] != "_"}}
    for part, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            found[part] = (id(module), str(getattr(module, "config", None)))
            continue
        for path, each in module.named_modules():
            own = {key for key in vars(each) if callable(vars(each)[key])}
            hooks = (len(each._forward_hooks), len(each._forward_pre_hooks), hasattr(each, "_hf_hook"))
            hooks = hooks if "text" not in part else ()  # transformers leaves its own where hidden states are asked for
            found[part, path] = each.training, hooks, own, type(getattr(each, "processor", None))
        for path, weight in [*module.named_parameters(), *module.named_buffers()]:
            found[part, "weight", path] = weight.dtype, weight.device, weight.data_ptr(), float(weight.double().sum())
    return found


def score_maps(pipe, config, **more):
    segmenter = Segmenter.from_pretrained(pipe, config, **more)
    return segmenter.score_maps(PICTURE, segmenter.read_prompt("cat, grass, sky")[0])


def use_segmenter(pipe, name, **more):
    Segmenter.from_pretrained(pipe, FAMILIES[name].config, **more)(PICTURE, "cat, grass")


def use_trace(pipe, name):
    side = FAMILIES[name].picture
    with trace(pipe, FAMILIES[name].config) as t:
        pipe("cat, grass", height=side, width=side, num_inference_steps=2, output_type="np", **CALLS.get(name, {}))
    t.segment()


def use_guidance(pipe, name):
    if name in GUIDED:
        side = FAMILIES[name].picture
        with SemanticGuidance(pipe, FAMILIES[name].config, "cat, grass"):
            pipe("cat, grass", height=side, width=side, num_inference_steps=2, **CALLS.get(name, {}))


USES = {
    "segmenting": use_segmenter,
    "segmenting in float32": lambda pipe, name: use_segmenter(pipe, name, dtype="float32"),
    "segmenting on a device": lambda pipe, name: use_segmenter(pipe, name, device="cpu"),
    "segmenting, offloaded": lambda pipe, name: use_segmenter(pipe, name, device="cpu", offload="sequential"),
    "tracing": use_trace,
    "guiding": use_guidance,
}


def follow(refused, pipe):
    """Run what a message says in backquotes."""
    names = {"pipe": pipe, "torch": torch, "denoiser": pipe.components.get("unet", pipe.components.get("transformer"))}
    lines = re.findall(r"`([^`]*)`", str(refused.value))
    assert lines, str(refused.value)
    for line in lines:
        exec(line, names)
