"""BLEU-1 to 4 (Papineni et al. 2002) from counts that can be summed, and so resampled, over any reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError

ORDERS = 4
# The coco-caption evaluation adds these to counts and lengths. A single report without one matching 4-gram
# scores about 1e-4 through them, so that equal values need equal constants.
MATCH_EPSILON = 1e-15
TOTAL_EPSILON = 1e-9


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, one row a report."""

    matches_N4: NDArray[np.float64]
    """n-grams of the hypothesis that a reference has, each at most as often as in one of them."""
    totals_N4: NDArray[np.float64]
    """n-grams of the hypothesis."""
    length_N: NDArray[np.float64]
    """Words of the hypothesis."""
    reference_length_N: NDArray[np.float64]
    """Words of the reference closest in length, the shorter one of two as close."""

    def per_report(self) -> NDArray[np.float64]:
        """[N, 4]: BLEU-1 to 4 of each report alone, in [0, 1]."""
        return _bleu(self.matches_N4, self.totals_N4, self.length_N, self.reference_length_N)

    def corpus(self, counts_DN: ArrayLike | None = None) -> NDArray[np.float64]:
        """BLEU-1 to 4 of all reports together, in [0, 1].

        Args:
            counts_DN: how often each report is taken, for D resamples; None takes each once.

        Returns:
            [4], or [D, 4].
        """
        weights = (
            np.ones(len(self.length_N)) if counts_DN is None else np.asarray(counts_DN, dtype=np.float64)
        )
        return _bleu(
            weights @ self.matches_N4,
            weights @ self.totals_N4,
            weights @ self.length_N,
            weights @ self.reference_length_N,
        )


def bleu_counts(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> BleuCounts:
    """Count n-grams.

    Args:
        hypotheses: words of N reports.
        references: words of one or more references of each.

    Raises:
        DataError: a report without a reference, or two lengths.
    """
    if len(hypotheses) != len(references) or not all(references):
        raise DataError("BLEU needs one or more references of each hypothesis")
    matches = np.zeros((len(hypotheses), ORDERS))
    totals = np.zeros((len(hypotheses), ORDERS))
    closest = np.zeros(len(hypotheses))
    for row, (words, against) in enumerate(zip(hypotheses, references, strict=True)):
        for order in range(1, ORDERS + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in against:
                most |= ngrams(reference, order)
            matches[row, order - 1] = (ngrams(words, order) & most).total()
            totals[row, order - 1] = max(0, len(words) - order + 1)
        closest[row] = min((abs(len(reference) - len(words)), len(reference)) for reference in against)[1]
    return BleuCounts(
        matches, totals, np.array([len(words) for words in hypotheses], dtype=np.float64), closest
    )


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _bleu(
    matches: NDArray[np.float64],
    totals: NDArray[np.float64],
    length: NDArray[np.float64],
    reference_length: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[..., 4], [..., 4], [...], [...] -> [..., 4]: geometric mean of precisions times brevity penalty."""
    precision = (matches + MATCH_EPSILON) / (totals + TOTAL_EPSILON)
    geometric = np.exp(np.cumsum(np.log(precision), axis=-1) / np.arange(1, ORDERS + 1))
    ratio = (np.asarray(length) + MATCH_EPSILON) / (np.asarray(reference_length) + TOTAL_EPSILON)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    result: NDArray[np.float64] = geometric * brevity[..., None]
    return result
