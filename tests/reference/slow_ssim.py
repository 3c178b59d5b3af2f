"""SSIM as equation (13) of Wang et al. 2004 has it: a window at a time, weighted sums around the mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def slow_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Mean SSIM of two [H, W] images with range 1."""
    at = np.arange(-5, 6)
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            cov = (weight * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return float(np.mean(values))
