"""Compare two systems on the same samples: paired bootstrap (Koehn 2004, section 5), interval and p value.

Both systems are scored on the same resamples, so that what makes a sample hard for both cancels out. A metric
need not be a mean over samples: only its value on each resample is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.scores.bootstrap import Interval, percentiles, resample_counts

DRAWS = 10_000
"""More than for an interval: the smallest p that D resamples can give is 2 / (D + 1)."""


@dataclass(frozen=True)
class Difference:
    """A metric of system B minus that of system A."""

    value: float
    """On all samples."""
    interval: Interval
    """95 %, percentiles of the difference over the resamples."""
    p: float
    """Two-sided: twice the share of resamples on the other side of 0, in (0, 1]; 1 if there is no
    difference."""


def difference(a: float, b: float, resampled_a_D: ArrayLike, resampled_b_D: ArrayLike) -> Difference:
    """B minus A.

    The p value inverts the interval: it is below 0.05 where the 95 % interval leaves 0 out. The resample that
    was observed counts as one (Davison and Hinkley 1997, section 4.2.1), so that p is never 0.

    Args:
        a, b: the metric on all samples.
        resampled_a_D, resampled_b_D: [D], the metric on the same D resamples.

    Raises:
        DataError: two numbers of resamples, or none.
    """
    of_a, of_b = np.asarray(resampled_a_D, np.float64), np.asarray(resampled_b_D, np.float64)
    if of_a.shape != of_b.shape:
        raise DataError(f"{len(of_a):,} and {len(of_b):,} resamples do not pair")
    delta_D = of_b - of_a
    one_side = min(int((delta_D <= 0).sum()), int((delta_D >= 0).sum()))
    p = min(1.0, 2 * (one_side + 1) / (len(delta_D) + 1))
    return Difference(b - a, percentiles(delta_D), p)


def mean_differences(
    a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike], groups: ArrayLike | None = None,
    draws: int = DRAWS, seed: int = 0,
) -> dict[str, Difference]:  # fmt: skip
    """Differences of metrics that are means over samples.

    Args:
        a, b: metric name -> [N] values, one a sample, in the same order.
        groups: [N] patients, resampled as a whole; None resamples samples.

    Raises:
        DataError: no sample, or lengths that differ.
    """
    out = {}
    for name in a:
        values_N2 = np.stack([np.asarray(side[name], np.float64) for side in (a, b)], axis=1)
        means_D2 = resampled_means(values_N2, groups, draws, seed)
        of_a, of_b = values_N2.mean(axis=0).tolist()
        out[name] = difference(of_a, of_b, means_D2[:, 0], means_D2[:, 1])
    return out


def resampled_means(
    values_NM: NDArray[np.float64], groups: ArrayLike | None, draws: int, seed: int
) -> NDArray[np.float64]:
    """[D, M]: means of each column on each resample."""
    return np.concatenate(
        [
            counts @ values_NM / counts.sum(axis=1, keepdims=True)
            for counts in resample_counts(len(values_NM), groups, draws, seed)
        ]
    )
