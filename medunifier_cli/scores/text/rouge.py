"""ROUGE-L (Lin 2004): F measure of the longest common subsequence, as the coco-caption evaluation has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError

BETA = 1.2
"""Weight of recall against precision, of the coco-caption evaluation."""


def rouge_l(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """ROUGE-L of each report; that of the corpus is the mean.

    Best precision and best recall may come from two different references.

    Args:
        hypotheses: words of N reports; one without words scores 0.
        references: words of one or more references of each.

    Returns:
        [N] in [0, 1].

    Raises:
        DataError: a report without a reference, a reference without words, or two lengths.
    """
    if len(hypotheses) != len(references) or not all(against and all(against) for against in references):
        raise DataError("ROUGE-L needs one or more references, with words, of each hypothesis")
    out = np.zeros(len(hypotheses))
    for row, (words, against) in enumerate(zip(hypotheses, references, strict=True)):
        common = [common_subsequence(words, reference) for reference in against]
        if not max(common):
            continue
        precision = max(common) / len(words)
        recall = max(length / len(reference) for length, reference in zip(common, against, strict=True))
        out[row] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return out


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one integer.

    Bit-parallel recurrence of Crochemore et al. 2001 ("A fast and practical bit-vector algorithm for the
    longest common subsequence problem"): a zero bit j means that row i gains one at column j.
    """
    places: dict[str, int] = {}
    for j, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(a) - row.bit_count()
