"""When copies are suspected, and which training image is the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.synthesis import copies
from medunifier_cli.evaluate.synthesis.copies import (
    ALL_RECONSTRUCTED,
    AS_THEY_ARE,
    RECONSTRUCTED,
    Verdict,
    copies_suspected,
    verdict_line,
)
from medunifier_cli.scores.privacy import Nearness, nearness


def comparisons(**p: float) -> dict[str, Nearness]:
    names = {"plain": AS_THEY_ARE, "smooth": RECONSTRUCTED, "coded": ALL_RECONSTRUCTED}
    return {names[name]: Nearness(0.1, 0.5, value) for name, value in p.items()}


@pytest.mark.parametrize(
    ("p", "suspected"),
    [
        # a model without codes: one test at 0.01
        ({"plain": 0.009}, True),
        ({"plain": 0.011}, False),
        # both references must agree
        ({"plain": 0.009, "smooth": 0.009}, True),
        ({"plain": 0.0, "smooth": 0.011}, False),
        ({"plain": 0.011, "smooth": 0.0}, False),
        # two tests: each at 0.005
        ({"plain": 0.006, "smooth": 0.006, "coded": 0.006}, False),
        ({"plain": 0.004, "smooth": 0.004, "coded": 1.0}, True),
        ({"plain": 0.0, "smooth": 0.006, "coded": 0.006}, False),
        ({"plain": 1.0, "smooth": 1.0, "coded": 0.004}, True),
    ],
)
def test_decision(p: dict[str, float], suspected: bool) -> None:
    assert copies_suspected(comparisons(**p)) is suspected


def test_false_alarms_are_rarer_than_one_percent_of_calls() -> None:
    """Judged images from the source of the held-out ones, in every comparison independently."""
    random = np.random.default_rng(0)

    def one_call() -> bool:
        distances = [(random.random(80), random.random(150)) for _ in range(3)]
        p = [nearness(judged, heldout).p for judged, heldout in distances]
        return copies_suspected(comparisons(plain=p[0], smooth=p[1], coded=p[2]))

    assert sum(one_call() for _ in range(2000)) <= 2000 * 0.01 + 3 * 4.5  # and three standard deviations


class Images:
    """A set of images in memory."""

    name, kind = "images", "images"

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def pick(self, numbers: Sequence[int]) -> np.ndarray:
        return self.images[list(numbers)]

    def title(self, number: int) -> str:
        return str(number)

    def fingerprint(self) -> str:
        return ""


def test_nearest_training_image_is_that_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    train = random.integers(0, 256, (30, 6, 6)).astype(np.uint8)
    judged = random.integers(0, 256, (9, 6, 6)).astype(np.uint8)
    judged[4] = np.clip(train[17] * 0.5 + 40, 0, 255)  # a copy up to contrast
    monkeypatch.setattr(copies, "CHUNK", 4)
    monkeypatch.setattr(copies, "CANDIDATES", 30)

    def features(_: Any, images: Any) -> np.ndarray:
        grey = images.images if isinstance(images, Images) else images
        return grey.reshape(len(grey), -1)[:, :5].astype(np.float32)

    monkeypatch.setattr(copies, "encoder_features", features)
    monkeypatch.setattr(copies, "query_means", features)
    nearest = copies._nearest_training(cast("PretrainedRun", None), Images(train), Images(judged), 9)
    flat_train, flat_judged = train.reshape(30, -1).astype(float), judged.reshape(9, -1).astype(float)
    for i, image in enumerate(flat_judged):
        correlations = [np.corrcoef(image, other)[0, 1] for other in flat_train]
        assert nearest.number_n[i] == int(np.argmax(correlations))
        assert nearest.distance_n[i] == pytest.approx(1 - max(correlations))
        gaps = [np.linalg.norm(image[:5] - other[:5]) for other in flat_train]
        assert nearest.feature_distance_n[i] == pytest.approx(min(gaps), abs=1e-4)
    assert nearest.number_n[4] == 17
    assert nearest.distance_n[4] < 0.01


def test_only_the_nearest_by_features_are_compared_by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    train = random.integers(0, 256, (5, 4, 4)).astype(np.uint8)
    monkeypatch.setattr(copies, "CANDIDATES", 2)
    monkeypatch.setattr(copies, "encoder_features", lambda *_: np.array([[0.0], [1.0], [2.0], [3.0], [4.0]]))
    monkeypatch.setattr(copies, "query_means", lambda *_: np.array([[0.4]]))
    nearest = copies._nearest_training(cast("PretrainedRun", None), Images(train), Images(train[4:]), 1)
    assert nearest.number_n[0] in (0, 1), "the same pixels as number 4, but far from it by features"
    assert nearest.feature_distance_n[0] == pytest.approx(0.4)


def test_the_verdict_names_the_page_either_way() -> None:
    for suspected in (True, False):
        line = verdict_line(Verdict([], suspected, Path("runs/a/page/index.html")))
        assert "runs/a/page/index.html" in line
        assert ("COPIES SUSPECTED" in line) is suspected
