"""The examples in docstrings run, and give what they show."""

import doctest
import importlib
import pkgutil

import goca
import pytest

SHOWN = {  # functions that users call: each has an example
    "goca.evaluation.decision": ["count_cells", "pack"],
    "goca.evaluation.matched_iou": ["MatchedIoU"],
    "goca.guidance.rate": ["guidance_rate"],
    "goca.method.heads": ["head_weights"],
    "goca.method.layers": ["layer_weights"],
    "goca.method.rescaling": ["rescale"],
    "goca.prompts.captioning": ["annotate"],
    "goca.refine.affinity": ["affinity"],
    "goca.refine.merging": ["merge_maps"],
    "goca.refine.pamr": ["pamr"],
}
ROOMS = ("method", "refine", "prompts", "guidance", "generation", "evaluation")
MODULES = [
    module.name for room in ROOMS for module in pkgutil.iter_modules([f"{goca.__path__[0]}/{room}"], f"goca.{room}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0
    for function in SHOWN.get(name, ()):
        assert ">>> " in getattr(module, function).__doc__, f"{name}.{function} has no example"
