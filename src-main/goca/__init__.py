"""GoCA: segmentation from the cross-attention of a text-to-image diffusion model, without training.

    from goca import Segmenter
    segmentation = Segmenter.from_pretrained("path/to/pipeline", "sd15")(image, "cat, grass, wall")

Names are looked up when they are first used, so that `goca.datasets` and `goca.evaluation` load without the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from goca.versions import warn_if_newer

if TYPE_CHECKING:  # for type checkers, which do not run __getattr__
    from goca.config import SegmenterConfig, load_config
    from goca.embedded import embedded_pipeline
    from goca.errors import GocaError
    from goca.generation.trace import trace
    from goca.prompts import PromptAnnotation
    from goca.protocol import Protocol
    from goca.segmentation import Segmentation
    from goca.segmenter import Segmenter

_HOME = {
    "GocaError": "goca.errors",
    "Protocol": "goca.protocol",
    "PromptAnnotation": "goca.prompts",
    "Segmentation": "goca.segmentation",
    "Segmenter": "goca.segmenter",
    "SegmenterConfig": "goca.config",
    "embedded_pipeline": "goca.embedded",
    "load_config": "goca.config",
    "trace": "goca.generation.trace",
}
__all__ = [
    "GocaError",
    "PromptAnnotation",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "SegmenterConfig",
    "embedded_pipeline",
    "load_config",
    "trace",
]


warn_if_newer("diffusers")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"goca has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
