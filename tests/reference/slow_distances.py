"""Fréchet distance and nearest neighbours by their definitions: resamples copied, every distance held."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from medunifier_cli.scores.bootstrap import resample_counts


def frechet(real_nD: NDArray[Any], fake_nD: NDArray[Any]) -> float:
    """Of two Gaussians (Heusel et al. 2017), with scipy's root of a matrix."""
    real, fake = real_nD.astype(np.float64), fake_nD.astype(np.float64)
    of_real, of_fake = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    shift = real.mean(axis=0) - fake.mean(axis=0)
    return float(shift @ shift + np.trace(of_real + of_fake - 2 * np.real(sqrtm(of_real @ of_fake))))


def frechet_error(real_nD: NDArray[Any], fake_nD: NDArray[Any], draws: int, seed: int) -> float:
    """Bootstrap standard error over the fakes."""
    values = []
    for counts in resample_counts(len(fake_nD), draws=draws, seed=seed):
        for row in counts.astype(np.int64):
            values.append(frechet(real_nD, np.repeat(fake_nD, row, axis=0)))
    return float(np.std(values, ddof=1))


def nearest(
    query_nD: NDArray[Any], train_tD: NDArray[Any], count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """One distance after the other; of equal ones the lower index comes first."""
    indices, distances = [], []
    for query in query_nD.astype(np.float64):
        far = [float(np.linalg.norm(query - other)) for other in train_tD.astype(np.float64)]
        order = sorted(range(len(far)), key=lambda i: (far[i], i))[:count]
        indices.append(order)
        distances.append([far[i] for i in order])
    return indices, distances
