"""Distances between two sets of features, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from goca.errors import GocaError

Array = np.ndarray[Any, np.dtype[np.float64]]


class DistanceError(GocaError, ValueError):
    """The features cannot be compared; the message says why."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to a set of features.

    mean        [d]
    covariance  unbiased   [d, d]
    """

    mean: Array
    covariance: Array


def statistics(features: Array) -> Statistics:
    """Fit features [n, d], n at least 2."""
    features = matrix(features)
    return Statistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))   (FID; Heusel et al., 2017)

    The trace of (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    if a.mean.shape != b.mean.shape:
        raise DistanceError(f"features of {len(a.mean)} and {len(b.mean)} numbers cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(0)).sum()
    means = ((a.mean - b.mean) ** 2).sum()
    return float(means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def kernel_distance(x: Array, y: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the squared MMD with (x.y / d + 1)^3   (KID; Binkowski, 2018)

    x, y    [n, d], [m, d];  size  of a subset, at most n and m
    """
    x, y = matrix(x), matrix(y)
    if x.shape[1] != y.shape[1]:
        raise DistanceError(f"features of {x.shape[1]} and {y.shape[1]} numbers cannot be compared")
    random, size = np.random.default_rng(seed), min(size, len(x), len(y))
    pick = [
        (random.choice(len(x), size, replace=False), random.choice(len(y), size, replace=False)) for _ in range(subsets)
    ]
    distances = [squared_mmd(x[rows], y[others]) for rows, others in pick]
    return float(np.mean(distances)), float(np.std(distances))


def squared_mmd(x: Array, y: Array) -> float:
    """Unbiased, so that it may be negative; x, y [n, d]."""
    n, m = len(x), len(y)
    xx, yy, xy = (cubic(left, right) for left, right in ((x, x), (y, y), (x, y)))
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(own - 2 * xy.mean())


def cubic(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3


def matrix(features: Any) -> Array:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise DistanceError(f"expected features [n, d] of at least two images; found {features.shape}")
    if not np.isfinite(features).all():
        raise DistanceError("the features are not finite")
    return features
