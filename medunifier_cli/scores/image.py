"""Compare two sets of images by their features: Fréchet distance, improved precision and recall.

Letters: n features of width D; `real` is the reference, `fake` the set that is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.scores.bootstrap import Interval, resample_counts

Floats = NDArray[np.float64]

NEIGHBOURS = 3
"""k of the manifolds (Kynkäänniemi et al. 2019, section 3)."""
NORMAL_95 = 1.959963984540054
CHUNK = 2048
"""Rows whose distances to all others are held at once."""


def frechet_distance(real_nD: ArrayLike, fake_nD: ArrayLike) -> float:
    """Squared Fréchet distance of Gaussians with the features' means and covariances (Heusel et al. 2017).

    Biased upwards when a set is small: compare only values of equal n.

    Raises:
        DataError: fewer than two features in a set, widths that differ, or a value that is not finite.
    """
    real, fake = _features(real_nD, fake_nD)
    return Reference(real).distance(fake)


class Reference:
    """The real side of the distance, worked out once for many fakes."""

    def __init__(self, real_nD: Floats) -> None:
        self.mean = real_nD.mean(axis=0)
        covariance = np.atleast_2d(np.cov(real_nD, rowvar=False))
        values, vectors = np.linalg.eigh(covariance)
        self.root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
        self.trace = float(np.trace(covariance))

    def distance(self, fake_nD: Floats) -> float:
        """To one set. tr((S_r S_f)^1/2) comes from singular values, so no complex root appears."""
        centred = (fake_nD - fake_nD.mean(axis=0)) / np.sqrt(len(fake_nD) - 1)
        mixed = np.linalg.svd(centred @ self.root, compute_uv=False).sum()
        shift = float(np.square(self.mean - fake_nD.mean(axis=0)).sum())
        return shift + self.trace + float(np.square(centred).sum()) - 2 * float(mixed)


def frechet_interval(real_nD: ArrayLike, fake_nD: ArrayLike, draws: int = 100, seed: int = 0) -> Interval:
    """95 % interval: value -+ 1.96 bootstrap standard errors over the fakes; the real side is the reference.

    Not percentiles: a resample repeats images, which moves the distance itself upwards.
    """
    real, fake = _features(real_nD, fake_nD)
    reference, n = Reference(real), len(fake)
    value, resampled = reference.distance(fake), []
    for counts in resample_counts(n, draws=draws, seed=seed):
        resampled += [reference.distance(np.repeat(fake, row.astype(np.int64), axis=0)) for row in counts]
    error = float(np.std(resampled, ddof=1)) if len(resampled) > 1 else 0.0
    return Interval(
        max(0.0, value - NORMAL_95 * error), value + NORMAL_95 * error, 0.95, len(resampled), seed
    )


@dataclass(frozen=True)
class PrecisionRecall:
    """Whether each image lies within the manifold of the other set; precision and recall are the shares."""

    fake_in_real_n: NDArray[np.bool_]
    """Fakes that lie within the real manifold: realism."""
    real_in_fake_n: NDArray[np.bool_]
    """Reals that lie within the fake manifold: variety."""

    @property
    def precision(self) -> float:
        """In [0, 1]."""
        return float(self.fake_in_real_n.mean())

    @property
    def recall(self) -> float:
        """In [0, 1]."""
        return float(self.real_in_fake_n.mean())


def precision_recall(real_nD: ArrayLike, fake_nD: ArrayLike, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): a manifold is the union of balls around each
    feature that reach its k-th nearest neighbour in its own set.

    Raises:
        DataError: a set of k features or fewer.
    """
    real, fake = _features(real_nD, fake_nD)
    if min(len(real), len(fake)) <= k:
        raise DataError(f"precision and recall need more than {k} images on both sides")
    return PrecisionRecall(_within(fake, real, k), _within(real, fake, k))


def _within(points: Floats, manifold: Floats, k: int) -> NDArray[np.bool_]:
    """Which `points` are in a ball of `manifold`."""
    radius = np.concatenate(
        [np.partition(_distances(manifold[i : i + CHUNK], manifold), k, axis=1)[:, k]
         for i in range(0, len(manifold), CHUNK)]
    )  # fmt: skip
    hits = [
        (_distances(points[i : i + CHUNK], manifold) <= radius).any(axis=1)
        for i in range(0, len(points), CHUNK)
    ]
    return np.concatenate(hits)


def _distances(a: Floats, b: Floats) -> Floats:
    """Squared Euclidean distances [len(a), len(b)]."""
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    result: Floats = squared.clip(min=0)  # rounding may leave it a little below 0
    return result


def _features(real_nD: ArrayLike, fake_nD: ArrayLike) -> tuple[Floats, Floats]:
    real, fake = np.asarray(real_nD, dtype=np.float64), np.asarray(fake_nD, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise DataError(f"features {list(real.shape)} and {list(fake.shape)} are not two sets of one width")
    if min(len(real), len(fake)) < 2:
        raise DataError("comparing sets of images needs two or more on both sides")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise DataError("a feature is not finite: the extractor's weights are damaged")
    return real, fake
