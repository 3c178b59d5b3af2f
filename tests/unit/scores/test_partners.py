"""Ranks of partners against a full sort, and chance against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from medunifier_cli.errors import DataError
from medunifier_cli.scores.partners import chance_ranks, partner_ranks
from medunifier_cli.scores.search import similarity


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.integers(-2, 3, size=shape).astype(np.float32)  # few values, so that scores are often equal
    x[..., 0] += 0.5
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_a_full_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 300
    g_q, g_t = unit(rng, n, 3, 4), unit(rng, n, 4)
    pairs = rng.integers(0, n // 2, n) if seed % 2 else np.arange(n)
    to_text, to_image = partner_ranks(g_q, g_t, pairs, pairs)
    scores = similarity(g_q, g_t)
    for matrix, ranks in ((scores, to_text), (scores.T, to_image)):
        for i in range(n):
            order = np.lexsort((np.arange(n), -matrix[i]))
            assert ranks[i] == 1 + np.flatnonzero(pairs[order] == pairs[i])[0]


def test_chance_is_that_of_random_orders() -> None:
    rng = np.random.default_rng(0)
    pairs = np.array([0] * 6 + [1] * 3 + list(range(2, 23)))
    ranks = []
    for _ in range(4000):
        order = pairs[rng.permutation(len(pairs))]
        first = {name: place for place, name in reversed(list(enumerate(order, 1)))}
        ranks += [first[name] for name in pairs]
    found = chance_ranks(pairs, pairs, (1, 5, 10))
    drawn = np.array(ranks)
    assert found["mean rank"] == pytest.approx(drawn.mean(), rel=0.02)
    assert found["median rank"] == pytest.approx(np.median(drawn), abs=1)
    for k in (1, 5, 10):
        assert found[f"recall@{k}"] == pytest.approx((drawn <= k).mean(), abs=0.01)


def test_single_partners_have_the_known_chance() -> None:
    assert chance_ranks(range(500), range(500), (10,)) == pytest.approx(
        {"recall@10": 0.02, "median rank": 250, "mean rank": 250.5}
    )


def test_an_image_without_its_text_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no partner"):
        partner_ranks(unit(rng, 3, 2, 4), unit(rng, 3, 4), [0, 1, 2], [0, 1, 1])
