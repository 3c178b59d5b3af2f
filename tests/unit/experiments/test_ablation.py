"""experiments/ablation.py: which weights it trains with, and its intervals."""

from __future__ import annotations

import pytest

from experiments.ablation import RECIPES, interval, weights_of


def test_recipes_are_those_of_the_papers_tables_in_the_order_of_their_ids() -> None:
    assert [tuple(weights_of(name).values()) for name in RECIPES] == [
        (1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 0, 1), (1, 1, 1, 1), (1, 1, 1, 0.8), (1, 1, 1, 1.2),
    ]  # fmt: skip


def test_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [61.2, 64.0, 59.5]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    mean, half = map(float, interval(values).split(" \u00b1 "))
    assert (mean, half) == (
        pytest.approx((low + high) / 2, abs=0.05),
        pytest.approx((high - low) / 2, abs=0.05),
    )


def test_what_was_not_measured_stays_empty() -> None:
    assert interval([None, None]) == ""
    assert interval([1.0, None, 1.0], signed=True) == "+1.0 \u00b1 0.0"
