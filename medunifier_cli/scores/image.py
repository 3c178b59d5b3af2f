"""Compare two sets of images by their features: Fréchet distance, improved precision and recall.

Letters: n features of width D; `real` is the reference, `fake` the set that is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    """The real side of the distance, worked out once for many fakes.

    tr((S_r S_f)^1/2) is the sum of the square roots of the eigenvalues of R S_f R with R = S_r^1/2, which is
    symmetric, so that no complex root appears. It has the eigenvalues that are not 0 in common with the Gram
    matrix of the fakes times R, and the smaller of the two is used.
    """

    def __init__(self, real_nD: ArrayLike) -> None:
        real = np.asarray(real_nD)
        self.mean = real.mean(axis=0, dtype=np.float64)
        covariance = _scatter(real, self.mean, np.ones(len(real))) / (len(real) - 1)
        values, vectors = np.linalg.eigh(covariance)
        self.root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
        self.trace = float(np.trace(covariance))

    def distance(self, fake_nD: ArrayLike) -> float:
        """To one set."""
        return Judged(self, fake_nD).distance()


class Judged:
    """One set of fakes beside a reference, of which many resamples are measured.

    A resample is measured from the counts of its images: no row is copied, and the largest arrays have
    [min(n, D), min(n, D)] numbers, and those of `CHUNK` rows.
    """

    def __init__(self, reference: Reference, fake_nD: ArrayLike) -> None:
        self.reference, self.fake = reference, np.asarray(fake_nD)
        self.centre = self.fake.mean(axis=0, dtype=np.float64)
        self.gram: Floats | None = None
        if len(self.fake) <= self.fake.shape[1]:
            # about a centre, so that the products of large means do not cancel
            mixed = (self.fake - self.centre) @ reference.root
            self.gram = mixed @ mixed.T

    def distance(self, counts_n: ArrayLike | None = None) -> float:
        """Of the set, or of a resample that holds image i `counts_n[i]` times."""
        weight_n = np.ones(len(self.fake)) if counts_n is None else np.asarray(counts_n, np.float64)
        n, root = float(weight_n.sum()), self.reference.root
        mean = self.centre if counts_n is None else _mean(self.fake, weight_n)
        if self.gram is None:
            covariance = _scatter(self.fake, mean, weight_n) / (n - 1)
            trace, product = float(np.trace(covariance)), root @ covariance @ root
        else:
            trace = sum(
                float(weight_n[rows] @ np.square(self.fake[rows] - mean).sum(axis=1))
                for rows in _chunks(len(self.fake))
            ) / (n - 1)  # fmt: skip
            product = _centred_gram(self.gram, weight_n) / (n - 1)
        mixed = np.sqrt(np.linalg.eigvalsh(product).clip(min=0)).sum()
        shift = float(np.square(self.reference.mean - mean).sum())
        return shift + self.reference.trace + trace - 2 * float(mixed)


def _centred_gram(gram_nn: Floats, weight_n: Floats) -> Floats:
    """Gram matrix of the rows that a resample holds, about their mean and times the root of their counts."""
    held = np.flatnonzero(weight_n)
    gram, weight = gram_nn[np.ix_(held, held)], weight_n[held]
    towards = gram @ weight / weight.sum()
    gram = gram - towards[:, None] - towards + float(weight @ towards) / weight.sum()
    root = np.sqrt(weight)
    scaled: Floats = gram * root[:, None] * root
    return scaled


def frechet_interval(real_nD: ArrayLike, fake_nD: ArrayLike, draws: int = 100, seed: int = 0) -> Interval:
    """95 % interval: value -+ 1.96 bootstrap standard errors over the fakes; the real side is the reference.

    Not percentiles: a resample repeats images, which moves the distance itself upwards.
    """
    real, fake = _features(real_nD, fake_nD)
    judged = Judged(Reference(real), fake)
    value, resampled = judged.distance(), []
    for counts in resample_counts(len(fake), draws=draws, seed=seed):
        resampled += [judged.distance(row) for row in counts]
    error = float(np.std(resampled, ddof=1)) if len(resampled) > 1 else 0.0
    return Interval(
        max(0.0, value - NORMAL_95 * error), value + NORMAL_95 * error, 0.95, len(resampled), seed
    )


def _mean(rows_nD: NDArray[Any], weight_n: Floats) -> Floats:
    """[D], `CHUNK` rows in double precision at a time."""
    total = np.zeros(rows_nD.shape[1])
    for rows in _chunks(len(rows_nD)):
        total += weight_n[rows] @ rows_nD[rows].astype(np.float64)
    mean: Floats = total / weight_n.sum()
    return mean


def _scatter(rows_nD: NDArray[Any], mean_D: Floats, weight_n: Floats) -> Floats:
    """Sum of weight * (row - mean)(row - mean)^T, [D, D], `CHUNK` rows in double precision at a time."""
    total = np.zeros((rows_nD.shape[1], rows_nD.shape[1]))
    for rows in _chunks(len(rows_nD)):
        held = weight_n[rows] > 0  # a resample leaves out a third of the rows
        part = (rows_nD[rows][held] - mean_D) * np.sqrt(weight_n[rows][held])[:, None]
        total += part.T @ part
    return total


def _chunks(n: int) -> Iterator[slice]:
    """Slices of `CHUNK` rows."""
    return (slice(start, start + CHUNK) for start in range(0, n, CHUNK))


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
    real, fake = (side.astype(np.float64) for side in _features(real_nD, fake_nD))
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


def _features(real_nD: ArrayLike, fake_nD: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both sides as they are, in single precision or double, since a copy would double the memory."""
    real, fake = (
        side if side.dtype in (np.float32, np.float64) else side.astype(np.float64)
        for side in (np.asarray(real_nD), np.asarray(fake_nD))
    )
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise DataError(f"features {list(real.shape)} and {list(fake.shape)} are not two sets of one width")
    if min(len(real), len(fake)) < 2:
        raise DataError("comparing sets of images needs two or more on both sides")
    if not all(np.isfinite(side[rows]).all() for side in (real, fake) for rows in _chunks(len(side))):
        raise DataError("a feature is not finite: the extractor's weights are damaged")
    return real, fake
