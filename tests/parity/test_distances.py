"""Fréchet distances from counts, nearest features in tiles; against `tests/reference/slow_distances.py`."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from medunifier_cli.scores import image, privacy
from tests.reference import slow_distances as slow


def draw(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    mixing = np.random.default_rng(9).normal(size=(width, width))
    return (np.random.default_rng(seed).normal(size=(n, width)) @ mixing + shift).astype(np.float32)


@pytest.mark.parametrize(
    ("real", "fake", "width"), [(90, 70, 12), (90, 70, 100), (30, 25, 25), (20, 200, 40)],
    ids=["more images than channels", "fewer", "as many", "a singular reference"],
)  # fmt: skip
def test_frechet_distance_and_its_interval(
    real: int, fake: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "CHUNK", 16)  # chunks that do not fit the sets
    reals, fakes = draw(real, width, 0), draw(fake, width, 1, 3.0)
    value = slow.frechet(reals, fakes)
    assert image.frechet_distance(reals, fakes) == pytest.approx(value, rel=1e-5)
    found = image.frechet_interval(reals, fakes, draws=12, seed=3)
    error = slow.frechet_error(reals, fakes, 12, 3)
    assert (found.high - found.low) / 2 / image.NORMAL_95 == pytest.approx(error, rel=1e-3)
    assert (found.high + found.low) / 2 == pytest.approx(value, rel=1e-5)


def test_frechet_interval_copies_no_resample() -> None:
    reals, fakes = draw(100, 64, 0), draw(40_000, 64, 1)
    tracemalloc.start()
    image.frechet_interval(reals, fakes, draws=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # one resample in double precision has twice the bytes of the set
    assert peak < 0.9 * fakes.nbytes, peak


@pytest.mark.parametrize("count", [1, 7, 20])
def test_nearest_features_over_tiles(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "TILE", 16)
    monkeypatch.setattr(privacy, "CHUNK", 5)
    train, query = draw(70, 4, 0), draw(13, 4, 1)
    index, distance = privacy.nearest(query, train, count)
    expected, far = slow.nearest(query, train, count)
    assert index.tolist() == expected
    assert distance == pytest.approx(np.array(far), rel=1e-6)


def test_equally_near_features_over_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "TILE", 16)
    random = np.random.default_rng(0)
    train, query = random.integers(0, 3, (70, 4)), random.integers(0, 3, (13, 4))
    index, distance = privacy.nearest(query, train, 20)
    assert distance == pytest.approx(np.array(slow.nearest(query, train, 20)[1]))
    assert np.linalg.norm(query[:, None] - train[index], axis=2) == pytest.approx(distance)
    assert all(len(set(row)) == 20 for row in index.tolist())


def test_nearest_features_of_a_large_set_in_little_memory() -> None:
    train, query = draw(40_000, 32, 0), draw(64, 32, 1)
    tracemalloc.start()
    privacy.nearest(query, train, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the distances to all are 20 MB, the features in double precision 10 MB
    assert peak < 20_000_000, peak
