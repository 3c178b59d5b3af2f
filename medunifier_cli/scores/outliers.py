"""Distance of feature vectors to a sample of others, in units of how these vary: Mahalanobis' distance.

n vectors of the sample, m vectors that are compared with it, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

TINY = 1e-9
"""Added to deviations, so that a feature which never varies divides by no zero."""


@dataclass(frozen=True)
class Cloud:
    """Mean and covariance of a sample, ready to measure distances to it."""

    mean_F: NDArray[np.float64]
    scale_F: NDArray[np.float64]
    """Standard deviation of each feature."""
    whiten_FF: NDArray[np.float64]
    """Turns vectors that are standardised into ones whose features vary alike and independently."""

    @classmethod
    def of(cls, sample_nF: ArrayLike) -> Cloud:
        """Fit a sample, with the covariance shrunk as far as its size asks for, see `shrunk_covariance`.

        Raises:
            ValueError: fewer than two vectors, or values that are not finite.
        """
        sample = np.asarray(sample_nF, np.float64)
        if sample.ndim != 2 or len(sample) < 2 or not np.isfinite(sample).all():
            raise ValueError(f"two or more finite vectors are needed, not {sample.shape}")
        mean, scale = sample.mean(axis=0), sample.std(axis=0) + TINY
        covariance = shrunk_covariance((sample - mean) / scale)
        return cls(mean, scale, np.linalg.inv(np.linalg.cholesky(covariance)).T)

    def distances(self, vector_mF: ArrayLike) -> NDArray[np.float64]:
        """Mahalanobis' distance of each vector, [m], 0 or more; about the root of F for one of the kind."""
        standard = (np.asarray(vector_mF, np.float64) - self.mean_F) / self.scale_F
        distance: NDArray[np.float64] = np.linalg.norm(standard @ self.whiten_FF, axis=1)
        return distance


def shrunk_covariance(centred_nF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance [F, F] of vectors with mean 0, drawn towards a multiple of the identity.

    How far is estimated from the vectors (Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004), so that it can be inverted with fewer vectors than
    features as well. Vectors that are all equal have the identity.
    """
    n, width = centred_nF.shape
    plain = centred_nF.T @ centred_nF / n
    level = float(np.trace(plain)) / width
    if level < TINY:
        return np.eye(width)
    away = float(((plain - level * np.eye(width)) ** 2).sum())
    lengths = (centred_nF**2).sum(axis=1)
    noise = max(0.0, float((lengths**2).mean() - (plain**2).sum()) / n)
    # at least a little: with vectors on few axes alone the estimate may leave a matrix that has no inverse
    weight = min(1.0, max(noise / away if away else 1.0, 1e-6))
    shrunk: NDArray[np.float64] = (1 - weight) * plain + weight * level * np.eye(width)
    return shrunk


def share_nearer(distance_m: ArrayLike, others_h: ArrayLike) -> NDArray[np.float64]:
    """Share of the other distances that are smaller than each distance, [m] in [0, 1].

    Raises:
        ValueError: there are no others.
    """
    others = np.sort(np.asarray(others_h, np.float64))
    if not len(others):
        raise ValueError("there are no distances to compare with")
    return np.searchsorted(others, np.asarray(distance_m, np.float64), side="left") / len(others)
