"""Distances to a sample of vectors, against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from medunifier_cli.scores.outliers import Cloud, share_nearer


def sample(n: int, width: int, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    """Correlated vectors of unequal scales around a mean that is not 0."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, width)) @ random.normal(size=(width, width)) * 3 + random.normal(size=width)


@pytest.mark.parametrize(("n", "width"), [(300, 6), (12, 20)])
def test_distances_are_those_of_a_shrunk_covariance(n: int, width: int) -> None:
    seen = sample(n, width)
    other = sample(9, width, seed=1) * 2
    standard = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(standard).covariance_)
    wanted = [
        mahalanobis((one - seen.mean(axis=0)) / seen.std(axis=0), np.zeros(width), inverse) for one in other
    ]
    assert Cloud.of(seen).distances(other) == pytest.approx(wanted, rel=1e-6)


def test_features_that_never_vary_and_equal_vectors_leave_finite_distances() -> None:
    seen = sample(40, 5)
    seen[:, 2] = 7.0
    assert np.isfinite(Cloud.of(seen).distances(seen)).all()
    same = Cloud.of(np.ones((5, 3)))
    assert same.distances(np.ones((1, 3)))[0] == 0
    assert same.distances([[1.0, 1.0, 2.0]])[0] > 1e6
    with pytest.raises(ValueError, match="finite"):
        Cloud.of([[1.0, np.nan], [0.0, 1.0]])


def test_shares_count_what_is_nearer() -> None:
    assert share_nearer([0.5, 1.0, 2.5, 9.0], [3.0, 1.0, 2.0, 4.0]).tolist() == [0, 0, 0.5, 1]
    with pytest.raises(ValueError, match="no distances"):
        share_nearer([1.0], [])
