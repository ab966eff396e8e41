"""Inputs and outputs of a model in the counting loop: `Case`, `Prediction`. Loads without torch."""

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
    label         the label map that the run counts   [H, W]
    run           number of the run among those that are counted together
    read_seconds  time for reading
    made_from     checksums of the files and the prompt, from `MadeFrom.of`
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
    notes      warnings to store in the results
    words      the classes that were looked for, with their presence; None: the classes of the label
    """

    scores: Any
    class_ids: Sequence[int]
    lost: Sequence[int] = ()
    notes: Sequence[str] = ()
    words: Sequence[Word] | None = None


Outcome = Prediction | SampleError  # SampleError: the reason why an image is skipped


class Predictor(Protocol):
    """Computes score maps: one outcome per case, in order.

    The cases of a call share forward passes if possible. Implementations: goca.benchmark.predictor and
    goca.benchmark.shared_forward.
    """

    def __call__(self, cases: Sequence[Case], /) -> Sequence[Outcome]: ...
