"""What the counting loop gives to a model and what it gets back: `Case`, `Prediction`. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from goca.datasets import Sample, SampleError
from goca.evaluation.presence import Word


@dataclass(frozen=True)
class Case:
    """One image of one run, to be segmented and counted.

    sample        the image with its ground truth
    label         the label map as the run counts it   [H, W]
    run           number of the run among those that are counted together
    read_seconds  time that reading took
    made_from     fingerprints of the files and the prompt, as `MadeFrom.of` returns them
    """

    sample: Sample
    label: NDArray[np.integer]
    run: int = 0
    read_seconds: float = 0.0
    made_from: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The score maps of one image.

    scores     [k+1, g, h], the last map being the background's; None: everything is background
    class_ids  the k ids in map order
    lost       those of them whose words were truncated, so that their map is empty
    notes      warnings that the results should keep
    words      the classes that were looked for, with their presence; None: the prompt named the classes of the label
    """

    scores: Any
    class_ids: Sequence[int]
    lost: Sequence[int] = ()
    notes: Sequence[str] = ()
    words: Sequence[Word] | None = None


Outcome = Prediction | SampleError  # the error: why an image is skipped


class Predictor(Protocol):
    """How images become score maps: one outcome per case, in order.

    The cases of a call share forward passes where they can. Implementations: goca.benchmark.predictor and
    goca.benchmark.shared_forward.
    """

    def __call__(self, cases: Sequence[Case], /) -> Sequence[Outcome]: ...
