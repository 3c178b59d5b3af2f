"""95 % intervals by resampling: percentile bootstrap (Efron and Tibshirani 1993, chapter 13), seeded.

Samples are resampled, or whole patients if `groups` names them: several images of one patient are not
independent, and an interval that treats them as such is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError

DRAWS = 1000
CHUNK = 4_000_000
"""Sample counts held at once; 16 MiB, whatever the number of samples."""


@dataclass(frozen=True)
class Interval:
    """Range of a metric over the share `level` of the resamples; `low <= high`, in the metric's unit."""

    low: float
    high: float
    level: float = 0.95
    draws: int = DRAWS
    """Number of resamples in use; those on which the metric is undefined are left out."""
    seed: int = 0


def mean_intervals(
    per_sample: Mapping[str, ArrayLike],
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of means, all on the same resamples.

    Args:
        per_sample: metric name -> [N] values, one a sample.
        groups: [N] patient or other unit that is resampled as a whole; None resamples samples.
        draws: resamples, >= 1.
        level: share of the resamples inside, in (0, 1).

    Raises:
        DataError: no sample, lengths that differ, a value that is NaN, or a level out of range.
    """
    if not per_sample:
        return {}
    columns = [np.asarray(values, dtype=np.float64) for values in per_sample.values()]
    n = len(columns[0])
    for name, column in zip(per_sample, columns, strict=True):
        if column.shape != (n,):
            raise DataError(f"{name} has shape {column.shape}, other metrics {n:,} samples")
        if np.isnan(column).any():
            raise DataError(
                f"{name} is NaN for {int(np.isnan(column).sum()):,} of {n:,} samples; leave them out first"
            )
    values_NM = np.stack(columns, axis=1)
    means_DM = np.concatenate(
        [
            counts @ values_NM / counts.sum(axis=1, keepdims=True)
            for counts in resample_counts(n, groups, draws, seed)
        ]
    )
    return {name: percentiles(means_DM[:, m], level, seed) for m, name in enumerate(per_sample)}


def intervals(
    statistic: Callable[[NDArray[np.int64]], Mapping[str, float | None]],
    n: int,
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of anything that can be computed from sample indices.

    Args:
        statistic: takes [N'] indices into the samples, repeats included; returns metric name -> value, where
            None (or a DataError for all of them) means that the metric is undefined on this resample, such as
            an AUROC without a positive. Each metric counts the resamples that it is defined on.
        n: samples.

    Returns:
        Only the metrics that are defined on at least half of the resamples.

    Raises:
        DataError: no sample, groups of another length, a level out of range.
    """
    resampled: dict[str, list[float]] = {}
    for counts in resample_counts(n, groups, draws, seed):
        for row in counts:
            try:
                values = statistic(np.repeat(np.arange(n), row.astype(np.int64)))
            except DataError:
                continue
            for name, value in values.items():
                if value is not None and not math.isnan(value):
                    resampled.setdefault(name, []).append(value)
    return {
        name: percentiles(values, level, seed)
        for name, values in resampled.items()
        if 2 * len(values) >= draws
    }


def resample_counts(
    n: int, groups: ArrayLike | None = None, draws: int = DRAWS, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Yield [d, N] arrays, how often each resample holds each sample; `draws` rows in all.

    The draws depend on `n`, `groups` and `seed` alone, so that metrics of one split share their resamples.

    Raises:
        DataError: no sample, no draw, groups of another length.
    """
    if n < 1 or draws < 1:
        raise DataError(f"an interval needs samples and draws, not {n} and {draws}")
    unit_N = (
        np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    )
    if len(unit_N) != n:
        raise DataError(f"{len(unit_N):,} groups for {n:,} samples")
    units = int(unit_N.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // (n + units))
    for start in range(0, draws, step):
        sampled_dU = rng.integers(0, units, size=(min(step, draws - start), units))
        rows = len(sampled_dU)
        # One bincount for all rows: each row counts in a range of numbers of its own.
        sampled_dU += units * np.arange(rows)[:, None]
        counts = np.bincount(sampled_dU.ravel(), minlength=units * rows).reshape(rows, units)
        yield counts[:, unit_N].astype(np.float64)


def percentiles(values: ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
    """The interval from the metric's values on the resamples.

    Raises:
        DataError: a level outside (0, 1), or no value.
    """
    resampled = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1:
        raise DataError(f"the level of an interval lies between 0 and 1, not at {level}")
    if not len(resampled):
        raise DataError("an interval needs one or more resamples")
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(resampled), seed)
