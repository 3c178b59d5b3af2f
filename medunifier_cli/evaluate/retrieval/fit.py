"""Whether any hit of a search fits its query, by ITM; and which words of a query the model does not know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.retrieval.rerank import match_scores
from medunifier_cli.run.cache import cached

PAIRS = 200
"""Most samples whose own and another's text are judged for the threshold."""
FEWEST = 10
"""Samples with text, and pairs of an image and other words, below which there is no threshold."""
JUDGED = 5
"""Best hits that are judged."""
LETTERS_OF_A_PIECE = 2.0
"""A word whose pieces have fewer letters on average was hardly met in training: it is spelled, not known."""
SHORTEST = 3
"""Letters of a word that may be called unknown."""


@dataclass(frozen=True)
class Threshold:
    """Log-odds of ITM that tell matched from unmatched pairs of a split best."""

    logodds: float
    matched: float
    """Share of the pairs of an image and its own text that reach it."""
    unmatched: float
    """Share of the pairs of an image and another text that reach it."""
    pairs: int

    def __str__(self) -> str:
        return (
            f"reached by {self.matched:.0%} of {self.pairs:,} matched pairs of the split and by "
            f"{self.unmatched:.0%} of unmatched ones"
        )


def best_threshold(matched: NDArray[np.float32], unmatched: NDArray[np.float32]) -> Threshold:
    """The log-odds with the largest share of matched minus share of unmatched pairs at or above it."""
    candidates = np.unique(np.concatenate([matched, unmatched]))
    shares = [((matched >= one).mean(), (unmatched >= one).mean()) for one in candidates]
    best = int(np.argmax([own - other for own, other in shares]))
    own, other = shares[best]
    return Threshold(float(candidates[best]), float(own), float(other), len(matched))


def threshold_of(
    trained: PretrainedRun, benchmark: Benchmark, has_text_n: NDArray[np.bool_]
) -> Threshold | None:
    """The threshold of a split, kept in the run's cache; None without ITM, or with hardly any pair.

    Args:
        has_text_n: which samples of the split have text.
    """
    numbers = np.random.default_rng(0).permutation(np.flatnonzero(has_text_n))[:PAIRS]
    if not trained.recipe.objectives.itm or len(numbers) < FEWEST:
        return None
    source = benchmark.source
    # the text of the next one, but for those with the same words
    others = np.roll(numbers, 1)
    differs = source.digests[numbers] != source.digests[others]
    if differs.sum() < FEWEST:  # nearly all texts are the same, word for word
        return None
    made_of = {"checkpoint": trained.identity, "shards": source.shards.fingerprint, "pairs": PAIRS}
    path = trained.run.cache / f"match-{benchmark.plugin.name}-{benchmark.split}.h5"

    def judge() -> dict[str, NDArray[np.float32]]:
        images = np.concatenate([numbers, numbers[differs]])
        texts = np.concatenate([numbers, others[differs]])
        odds = match_scores(trained, source.images_or_features, source.token_ids, images, texts, quiet=True)
        return {"matched": odds[: len(numbers)], "unmatched": odds[len(numbers) :]}

    found = cached(path, made_of, judge)
    return best_threshold(found["matched"], found["unmatched"])


def verdict(odds: Sequence[float], threshold: Threshold | None) -> str:
    """`none fits` with the reason, or empty where some hit reaches the threshold or there is none."""
    if threshold is None or not len(odds) or max(odds) >= threshold.logodds:
        return ""
    return f"none fits: of the best {len(odds)}, none reaches the odds of a match {threshold}"


def unknown_words(trained: PretrainedRun, text: str) -> list[str]:
    """Words of a text that the model's tokenizer spells letter by letter, or does not know at all."""
    unknown = []
    for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text)):
        pieces = trained.tokenizer.encode(word, 100)[1:-1]
        if len(word) < SHORTEST:
            continue
        known = trained.tokenizer.decode(pieces).replace(" ", "").lower() == word.lower()
        if not known or len(word) / max(1, len(pieces)) < LETTERS_OF_A_PIECE:
            unknown.append(word)
    return unknown
