"""How often an image waits for the device: as often with all layers as with one, so that no layer waits by itself."""

import torch
from goca import PromptAnnotation, Segmenter
from torch.utils._python_dispatch import TorchDispatchMode

IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5))
MOST = 8  # numbers that the host reads from tensors per image: are the latents finite, is the output rebuilt, ...


class Read(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors: each is a wait where they are on a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def reads(cross_layers):
    segmenter = Segmenter.from_pretrained("goca:mini-sd", {"of": "mini-sd", "cross_layers": cross_layers})
    annotation = PromptAnnotation("star, snow, wall", [1, 3, 5], {1: [1], 2: [3]}, [0, 6], [[5]])
    segmenter(IMAGE, annotation)  # indices are made once
    with Read() as found:
        segmenter(IMAGE, annotation)
    return found.count


def test_no_layer_waits_by_itself():
    every, one = reads("all"), reads(["up-level1-repeat1-vit-block0-cross-map"])
    assert 0 < every == one <= MOST
