"""The sample order, against plain loops."""

import numpy as np
import pytest

from medunifier_cli.data.order import SampleOrder


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_each_sample_exactly_once_per_epoch(n: int) -> None:
    order = SampleOrder(n, seed=3)
    for epoch in range(4):
        assert sorted(order.indices(epoch * n, (epoch + 1) * n)) == list(range(n))


def test_a_range_is_its_positions_one_by_one_across_epochs() -> None:
    order = SampleOrder(10, seed=0)
    epochs = [SampleOrder(10, 0).permutation(epoch).tolist() for epoch in range(4)]
    for start, stop in [(0, 10), (7, 13), (5, 38), (9, 9), (25, 26)]:
        assert order.indices(start, stop).tolist() == [epochs[p // 10][p % 10] for p in range(start, stop)]


def test_reading_order_does_not_matter() -> None:
    positions = np.random.default_rng(0).permutation(50).tolist()
    forward = SampleOrder(13, seed=5).indices(0, 50).tolist()
    order = SampleOrder(13, seed=5)
    assert [order.indices(p, p + 1).tolist() for p in positions] == [[forward[p]] for p in positions]


def test_epochs_and_seeds_differ_and_the_order_is_pinned() -> None:
    """A pinned order: a new numpy must not quietly change what a resumed run sees."""
    assert SampleOrder(8, seed=0).indices(0, 16).tolist() == PINNED
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 0).indices(100, 200).tolist()
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 1).indices(0, 100).tolist()


PINNED = [5, 0, 6, 1, 7, 2, 4, 3, 2, 0, 4, 1, 7, 5, 3, 6]


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        SampleOrder(0, 0)
