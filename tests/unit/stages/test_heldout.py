"""What pre-training is measured by: PSNR, the mean image, and the other text that ITM is asked about."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate import fidelity
from medunifier_cli.evaluate.fidelity import mean_image, psnr
from medunifier_cli.evaluate.pair_scores import other_texts
from medunifier_cli.recipe.schema import DataConfig, TextConfig
from medunifier_cli.stages.heldout import nearest_texts
from tests import hand_made


def slow_psnr(image: Any, other: Any) -> float:
    """Pixel by pixel, peak 1."""
    errors = [
        (a - min(max(b, 0.0), 1.0)) ** 2
        for a, b in zip(image.flatten().tolist(), other.flatten().tolist(), strict=True)
    ]
    return -10 * math.log10(sum(errors) / len(errors))


def test_psnr_equals_a_slow_loop_also_outside_the_range_of_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 8, 8, generator=generator)
    noise_3 = torch.tensor([0.01, 0.3, 2.0])
    other = image + torch.randn(3, 3, 8, 8, generator=generator) * noise_3[:, None, None, None]
    expected = [slow_psnr(a, b) for a, b in zip(image, other, strict=True)]
    assert psnr(image, other).tolist() == pytest.approx(expected, rel=1e-4)
    assert psnr(image, image).tolist() == pytest.approx([120.0] * 3)  # and not infinity


@pytest.fixture
def source(tmp_path: Path) -> SplitSource:
    """70 hand-made samples: a whole batch of evaluation and a part of one."""
    hand_made.write_split(tmp_path, "test", 70, per_shard=40)
    tokenizer = TextTokenizer.train(hand_made.WORDS, 60)
    data = DataConfig(dataset="hand-made", image_size=16)
    shards = Shards.open(tmp_path, "test")
    return SplitSource(shards, tokenizer, data, TextConfig(), hand_made.HandMade())


def test_mean_image_counts_every_sample_once(source: SplitSource) -> None:
    total = sum(source.sample(i).image_HW.astype(np.float64) for i in range(70))
    assert mean_image(source).shape == (1, 1, 16, 16)
    np.testing.assert_allclose(mean_image(source)[0, 0].numpy(), total / 70 / 255, atol=1e-6)


class Texts:
    """A stand-in for a split: the hash of what the model reads of each sample's text."""

    def __init__(self, *digests: int) -> None:
        self.token_digests = np.array(digests, np.int64)

    def __len__(self) -> int:
        return len(self.token_digests)


def others(*digests: int, seed: int = 0) -> list[int]:
    source: Any = Texts(*digests)
    return list(other_texts(source, seed).tolist())


def test_the_other_text_always_differs() -> None:
    digests = [7, 7, 7, 7, 7, 7, 7, 7, 1, 2]
    for seed in range(20):
        chosen = others(*digests, seed=seed)
        assert all(digests[i] != digests[j] for i, j in enumerate(chosen))


def test_the_other_text_depends_on_seed_and_sample_alone() -> None:
    digests = list(range(50))
    assert others(*digests) == others(*digests)
    assert others(*digests) != others(*digests, seed=1)


def test_other_texts_come_from_the_whole_split() -> None:
    counts = Counter(j // 50 for seed in range(20) for j in others(*range(200), seed=seed))
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 1000) < 110 for count in counts.values())  # four standard deviations


def test_equal_texts_have_no_other() -> None:
    assert others(5, 5, 5) == [-1, -1, -1]


def test_mean_image_of_a_large_split_is_that_of_evenly_spaced_samples(
    source: SplitSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "MEAN_OF", 7)
    rows = source.rows.copy()
    expected = sum(source.sample(i).image_HW.astype(np.float64) for i in range(0, 70, 10)) / 7 / 255
    np.testing.assert_allclose(mean_image(source)[0, 0].numpy(), expected, atol=1e-6)
    assert np.array_equal(source.rows, rows), "the split itself stays whole"


def test_the_nearest_text_is_that_of_a_slow_loop_and_never_one_of_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((40, 3, 8)).astype(np.float32)
    text = rng.standard_normal((40, 8)).astype(np.float32)
    image /= np.linalg.norm(image, axis=-1, keepdims=True)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    digests = rng.integers(0, 4, 40)
    expected = []
    for own in range(40):
        others = [other for other in range(40) if digests[other] != digests[own]]
        best = [max(float(query @ text[other]) for query in image[own]) for other in others]
        expected.append(others[int(np.argmax(best))])
    assert nearest_texts(image, text, digests).tolist() == expected


def test_where_all_texts_are_equal_none_is_the_nearest() -> None:
    one = np.eye(3, dtype=np.float32)
    assert nearest_texts(one[:, None], one, np.array([5, 5, 5])).tolist() == [-1, -1, -1]
