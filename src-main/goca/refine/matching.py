"""Hungarian matching: each cluster without a name gets at most one class of the label, image by image."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from goca.refine.errors import RefineError

UNMATCHED = -1
Map = TypeVar("Map", NDArray, Tensor)


def hungarian_match(pred: Map, label: NDArray | Tensor, num_classes: int) -> Map:
    """Replace cluster numbers by class ids so that as many pixels as possible agree with the label.

    pred      [H, W]  cluster numbers, any number of them; negative: no cluster
    label     [H, W]  class ids; values outside 0..num_classes-1 (such as 255) are void and ignored
    returns   [H, W]  int64, like `pred`: one class per cluster, one cluster per class; UNMATCHED (-1) if
              a cluster has no class, because all classes that it overlaps were given to others
    errors    RefineError for other shapes or dtypes
    """
    clusters, truth = (np.asarray(each.cpu() if isinstance(each, Tensor) else each) for each in (pred, label))
    if clusters.shape != truth.shape or clusters.ndim != 2 or any(a.dtype.kind not in "iub" for a in (clusters, truth)):
        raise RefineError(
            f"prediction {clusters.dtype} {list(clusters.shape)} and label {truth.dtype} {list(truth.shape)}: expected "
            "whole numbers [H, W] of one size"
        )
    if num_classes < 1:
        raise RefineError(f"num_classes is {num_classes}; it must be at least 1")
    clusters, truth = clusters.astype(np.int64), truth.astype(np.int64)
    numbers, places = np.unique(clusters, return_inverse=True)
    places = places.reshape(clusters.shape)
    counted = (truth >= 0) & (truth < num_classes) & (clusters >= 0)
    overlap = np.zeros((len(numbers), num_classes), np.int64)
    np.add.at(overlap, (places[counted], truth[counted]), 1)
    classes = np.full(len(numbers), UNMATCHED, np.int64)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    agree = overlap[rows, columns] > 0
    classes[rows[agree]] = columns[agree]
    matched = classes[places]
    return torch.from_numpy(matched).to(pred.device) if isinstance(pred, Tensor) else matched
