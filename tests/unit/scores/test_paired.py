"""The paired bootstrap against scipy, and how often it finds a difference where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medunifier_cli.errors import DataError
from medunifier_cli.scores.paired import difference, mean_differences


def scores(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two systems that find the same samples hard."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.2, n)
    return 0.4 + hard + rng.normal(0, 0.05, n), 0.4 + shift + hard + rng.normal(0, 0.05, n)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.02])
def test_interval_and_p_agree_with_scipy(shift: float) -> None:
    a, b = scores(120, shift, seed=3)
    ours = mean_differences({"m": a}, {"m": b})["m"]
    assert ours.value == pytest.approx(b.mean() - a.mean())
    theirs = stats.bootstrap(
        (a, b), lambda x, y, axis: y.mean(axis) - x.mean(axis), paired=True, vectorized=True,
        n_resamples=10_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.interval.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.interval.high == pytest.approx(theirs.high, abs=0.04 * width)
    # two tests that make other assumptions: they agree on 120 samples, up to their own noise
    assert ours.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)
    flipped = stats.permutation_test(
        (a, b), lambda x, y, axis: y.mean(axis) - x.mean(axis), permutation_type="samples", vectorized=True,
        n_resamples=10_000, rng=np.random.default_rng(1),
    )  # fmt: skip
    assert ours.p == pytest.approx(flipped.pvalue, abs=0.02)


def test_pairing_is_what_finds_a_small_difference() -> None:
    a, b = scores(120, 0.02, seed=3)
    shuffled = np.random.default_rng(0).permutation(b)
    assert mean_differences({"m": a}, {"m": b})["m"].p < 0.01
    assert mean_differences({"m": a}, {"m": shuffled})["m"].p > 0.1


def test_equal_systems_differ_as_often_as_the_level_says() -> None:
    found = [mean_differences({"m": a}, {"m": b}, draws=500)["m"].p <= 0.05
             for a, b in (scores(80, 0.0, seed) for seed in range(400))]  # fmt: skip
    assert stats.binomtest(sum(found), len(found), 0.05).pvalue > 0.001


def test_patients_are_resampled_as_a_whole() -> None:
    a, b = scores(30, 0.02, seed=1)
    once = mean_differences({"m": a}, {"m": b})["m"].interval
    patients = np.repeat(np.arange(30), 8)
    copied = mean_differences({"m": np.repeat(a, 8)}, {"m": np.repeat(b, 8)}, patients)["m"].interval
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)
    as_images = mean_differences({"m": np.repeat(a, 8)}, {"m": np.repeat(b, 8)})["m"].interval
    assert as_images.high - as_images.low < 0.5 * (once.high - once.low)


def test_p_at_its_ends() -> None:
    same = difference(0.5, 0.5, [0.4, 0.5, 0.6], [0.4, 0.5, 0.6])
    assert (same.value, same.p) == (0, 1)
    assert difference(0, 1, np.zeros(999), np.ones(999)).p == pytest.approx(2 / 1000)
    assert difference(1, 0, np.ones(999), np.zeros(999)).p == pytest.approx(2 / 1000)
    with pytest.raises(DataError, match="3 and 2 resamples"):
        difference(0, 0, [1, 2, 3], [1, 2])
