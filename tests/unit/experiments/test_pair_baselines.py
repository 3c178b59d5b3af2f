"""experiments/pair_baselines.py on pairs whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.pair_baselines import (
    EDGE,
    LEAST,
    Pairs,
    Words,
    linear_ranks,
    nearest,
    neighbour_ranks,
    neighbour_texts,
    pixel_vectors,
    unit,
)

KINDS = 8
"""Kinds of pair: a bright square at a place of its own, and a word of its own."""
WORDS = ("effusion", "edema", "nodule", "mass", "catheter", "hernia", "cyst", "abscess")


def pairs(count: int, seed: int, blind: bool = False) -> tuple[Pairs, NDArray[np.int64]]:
    """`count` pairs and their kinds; with `blind` the texts have nothing to do with the images."""
    rng = np.random.default_rng(seed)
    kind_n = np.arange(count) % KINDS
    image_nHW = rng.integers(80, 120, (count, 64, 64)).astype(np.uint8)
    for image, kind in zip(image_nHW, kind_n, strict=True):
        row, column = divmod(int(kind), 4)
        image[row * 32 : row * 32 + 16, column * 16 : column * 16 + 16] = 250
    told = rng.permutation(kind_n) if blind else kind_n
    return Pairs(image_nHW, [f"Chest X-ray showing {WORDS[kind]}." for kind in told]), kind_n


def test_a_pixel_vector_ignores_brightness_and_contrast() -> None:
    image = np.random.default_rng(0).integers(0, 100, (1, 64, 64)).astype(np.uint8)
    twice = (2 * image + 30).astype(np.uint8)
    one, other = pixel_vectors(image), pixel_vectors(twice)
    assert one.shape == (1, EDGE * EDGE)
    assert float((one @ other.T)[0, 0]) == pytest.approx(1, abs=1e-3)
    negative = pixel_vectors((255 - image).astype(np.uint8))
    assert float((one @ negative.T)[0, 0]) == pytest.approx(-1, abs=1e-3)


def test_words_are_weighed_as_scikit_learn_weighs_them() -> None:
    extraction = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["left effusion", "right effusion", "effusion", "edema left", "edema of the right lung"] * LEAST
    # theirs adds 1 to each weight; with that taken off only the counting differs
    theirs = extraction.TfidfVectorizer(binary=True, smooth_idf=False, token_pattern=r"\w+").fit(texts)
    ours = Words(texts)
    assert sorted(theirs.vocabulary_) == sorted(ours.column)
    for word, column in ours.column.items():
        assert ours.weight[column] == pytest.approx(theirs.idf_[theirs.vocabulary_[word]] - 1)


def test_a_rare_word_does_not_count_and_a_text_without_known_words_has_length_one() -> None:
    words = Words(["edema left"] * LEAST + ["edema right"] * LEAST + ["pneumoperitoneum"])
    assert sorted(words.column) == ["edema", "left", "right"]
    assert np.linalg.norm(words.vectors(["pneumoperitoneum", "left edema"]), axis=1) == pytest.approx(1)


def test_nearest_is_the_largest_product() -> None:
    train = unit(np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    assert nearest(unit(np.array([[0.9, 0.1], [-2, 1]], np.float32)), train).tolist() == [0, 2]


@pytest.mark.parametrize("ranks", [neighbour_ranks, linear_ranks])
def test_pairs_that_belong_together_rank_first_both_ways(ranks) -> None:  # type: ignore[no-untyped-def]
    (train, _), (held, kind_n) = pairs(400, 1), pairs(40, 2)
    found = ranks(train, held, kind_n)
    assert [(way, rank.tolist()) for way, rank in found.items()] == [
        ("image_to_text", [1] * 40),
        ("text_to_image", [1] * 40),
    ]


@pytest.mark.parametrize("ranks", [neighbour_ranks, linear_ranks])
def test_texts_that_say_nothing_of_the_image_rank_by_chance(ranks) -> None:  # type: ignore[no-untyped-def]
    (train, _), (held, _) = pairs(400, 1, blind=True), pairs(200, 2, blind=True)
    for rank_n in ranks(train, held, np.arange(200)).values():
        assert (rank_n <= 10).mean() < 0.15  # chance is 0.05


def test_an_image_gets_the_text_of_the_training_image_that_looks_like_it() -> None:
    (train, _), (held, kind_n) = pairs(80, 1), pairs(16, 2)
    wanted = [f"Chest X-ray showing {WORDS[kind]}." for kind in kind_n]
    assert neighbour_texts(train, held) == wanted
