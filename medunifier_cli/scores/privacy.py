"""Test whether images are nearer to the training set than unseen images are, which suggests copies.

Letters: f judged images, h held-out ones, t training images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError

QUANTILE = 0.01
"""Of the held-out images' distances; what lies below is suspiciously near."""
ALPHA = 0.01
"""Significance level: probability of a false alarm for images that are like the held-out ones."""
CHUNK = 1024
"""Queries compared at once."""
TILE = 8192
"""Training features compared at once: 64 MiB of distances, and as many of features at width 1,024."""


@dataclass(frozen=True)
class Nearness:
    """The distances of the judged images compared with those of held-out ones."""

    threshold: float
    """The held-out 1 % quantile (the smallest distance, where there are fewer than 200)."""
    share: float
    """Judged images below it, in [0, 1]; about 0.01 where they are no nearer than unseen ones."""
    p: float
    """Probability of so large a share if judged and held-out images came from one source."""


def nearness(judged_f: ArrayLike, heldout_h: ArrayLike) -> Nearness:
    """Compare distances to the nearest training image.

    The count below the k-th smallest of h held-out distances is beta-binomial(f, k, h - k + 1) when both sets
    come from one source, whatever the distances' distribution (a fact of order statistics); so the test
    allows for the chance in both samples.

    Raises:
        DataError: an empty side or a distance that is not finite.
    """
    judged, heldout = np.asarray(judged_f, np.float64), np.sort(np.asarray(heldout_h, np.float64))
    if not len(judged) or not len(heldout):
        raise DataError("no images to compare, or no held-out images to compare them with")
    if not (np.isfinite(judged).all() and np.isfinite(heldout).all()):
        raise DataError("a distance to the training images is not finite")
    k = max(1, int(QUANTILE * len(heldout)))
    threshold = float(heldout[k - 1])
    count = int((judged < threshold).sum())
    return Nearness(threshold, count / len(judged), _tail(count, len(judged), k, len(heldout) - k + 1))


def _tail(count: int, n: int, a: int, b: int) -> float:
    """P(X >= count) of a beta-binomial(n, a, b)."""
    total = 0.0
    for x in range(count, n + 1):
        ways = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
        total += math.exp(ways + _log_beta(x + a, n - x + b) - _log_beta(a, b))
    return min(1.0, total)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def nearest(
    query_nD: ArrayLike, train_tD: ArrayLike, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `count` nearest training features of each query; which of equally near ones are taken is left open.

    Queries and training features meet in tiles, so that neither side is ever held in double precision.

    Returns:
        Indices [n, count], nearest first, and Euclidean distances [n, count].
    """
    query, train = np.asarray(query_nD), np.asarray(train_tD)
    count = min(count, len(train))
    index = np.zeros((len(query), 0), np.int64)
    squared = np.zeros((len(query), 0))
    for start in range(0, len(train), TILE):
        tile = train[start : start + TILE].astype(np.float64)
        tile_index, tile_squared = _nearest_of(query, tile, min(count, len(tile)))
        both = np.concatenate([squared, tile_squared], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :count]
        index = np.take_along_axis(np.concatenate([index, tile_index + start], axis=1), order, axis=1)
        squared = np.take_along_axis(both, order, axis=1)
    return index, np.sqrt(squared)


def _nearest_of(
    query_nD: NDArray[Any], tile_tD: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `count` nearest of one tile: indices and squared distances, nearest first."""
    length_t = np.square(tile_tD).sum(axis=1)
    indices, distances = [], []
    for start in range(0, len(query_nD), CHUNK):
        part = query_nD[start : start + CHUNK].astype(np.float64)
        squared = (np.square(part).sum(axis=1)[:, None] + length_t - 2 * part @ tile_tD.T).clip(min=0)
        candidates = np.argpartition(squared, count - 1, axis=1)[:, :count]
        value = np.take_along_axis(squared, candidates, axis=1)
        order = np.argsort(value, axis=1, kind="stable")
        indices.append(np.take_along_axis(candidates, order, axis=1))
        distances.append(np.take_along_axis(value, order, axis=1))
    return np.concatenate(indices).astype(np.int64), np.concatenate(distances)


def correlation(image_HW: ArrayLike, others_cHW: ArrayLike) -> NDArray[np.float64]:
    """Pearson correlation of an image's pixels with those of each other image, [c] in [-1, 1]; 0 if flat."""
    a = np.asarray(image_HW, np.float64).ravel()
    b = np.asarray(others_cHW, np.float64).reshape(len(np.asarray(others_cHW)), -1)
    a, b = a - a.mean(), b - b.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
    result: NDArray[np.float64] = np.where(scale > 0, b @ a / np.where(scale > 0, scale, 1), 0.0)
    return result
