"""Calls of a denoiser: one with random latents, what a pipeline hands over at its first, how many attentions."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Called(Exception):
    """Stops a pipeline at its first call of the denoiser."""


def arguments_of(denoiser, run):
    """What the denoiser is first called with, tensors by name; lists of tensors and tuples are taken apart."""
    found = {}

    def flat(name, value):
        if torch.is_tensor(value):
            found[name] = value
        elif isinstance(value, list | tuple):
            for number, each in enumerate(value):
                flat(f"{name}.{number}", each)
        elif isinstance(value, dict):
            for key, each in value.items():
                flat(f"{name}.{key}", each)
        elif value is not None and not isinstance(value, bool):
            found[name] = torch.tensor(value, dtype=torch.float64)

    def hook(module, args, kwargs):
        given = inspect.signature(type(denoiser).forward).bind(module, *args, **kwargs).arguments
        for name, value in given.items():
            if name not in ("self", "return_dict"):
                flat(name, value)
        raise Called

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    with pytest.raises(Called):
        run()
    handle.remove()
    return found


def call(fx, hw=(8, 8)):
    """What the denoiser of an extractor gives for random latents and text."""
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, *hw, generator=generator), torch.randn(1, 12, 16, generator=generator)
    with torch.no_grad():
        return fx.denoiser(latents, 7, encoder_hidden_states=text, return_dict=False)[0]


class Counted(TorchFunctionMode):
    """How often attention was computed, by anything."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))
