"""CIDEr (Vedantam et al. 2015) as the coco-caption evaluation computes it: its variant D, times 10."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.scores.text.bleu import ngrams

ORDERS = 4
SIGMA = 6.0
"""Width in words of the penalty on lengths that differ (section 5 of the paper)."""
SCALE = 10.0

Weights = Mapping[tuple[str, ...], float]


def cider(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """CIDEr-D of each report; that of the corpus is the mean.

    An n-gram weighs log(N / reports whose references have it), so that a score depends on the other reports
    scored with it, and one report alone scores 0.

    Args:
        hypotheses: words of N reports.
        references: words of one or more references of each.

    Returns:
        [N] in [0, 10].

    Raises:
        DataError: a report without a reference, or two lengths.
    """
    if len(hypotheses) != len(references) or not all(references):
        raise DataError("CIDEr needs one or more references of each hypothesis")
    score = np.zeros(len(hypotheses))
    for order in range(1, ORDERS + 1):
        counted = [[ngrams(reference, order) for reference in against] for against in references]
        seen = Counter(gram for against in counted for gram in set().union(*against))
        for row, (words, against) in enumerate(zip(hypotheses, counted, strict=True)):
            weights, norm = _weigh(ngrams(words, order), seen, len(references))
            for reference, of in zip(references[row], against, strict=True):
                truth, truth_norm = _weigh(of, seen, len(references))
                if not truth_norm or not norm:
                    continue
                dot = sum(
                    min(weight, truth[gram]) * truth[gram]
                    for gram, weight in weights.items()
                    if gram in truth
                )
                penalty = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
                score[row] += penalty * dot / (norm * truth_norm) / len(against)
    return score * (SCALE / ORDERS)


def _weigh(
    counts: Counter[tuple[str, ...]], seen: Mapping[tuple[str, ...], int], reports: int
) -> tuple[Weights, float]:
    """tf-idf weights of the n-grams and their Euclidean norm; a new n-gram counts as seen once."""
    weights = {gram: count * math.log(reports / max(1, seen.get(gram, 0))) for gram, count in counts.items()}
    return weights, math.sqrt(sum(weight * weight for weight in weights.values()))
