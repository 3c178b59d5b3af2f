"""Score generated reports: BLEU-1 to 4, ROUGE-L and CIDEr, with pycocoevalcap's values on the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.scores.bootstrap import DRAWS, Interval, mean_intervals, percentiles, resample_counts
from medunifier_cli.scores.text.bleu import ORDERS, bleu_counts
from medunifier_cli.scores.text.cider import cider
from medunifier_cli.scores.text.rouge import rouge_l
from medunifier_cli.scores.text.words import Protocol, prepare

METRICS = (*(f"bleu_{n}" for n in range(1, ORDERS + 1)), "rouge_l", "cider")


@dataclass(frozen=True)
class TextScores:
    """Scores of N generated reports. METEOR is scored apart, see `meteor`: its program starts only once."""

    protocol: Protocol
    scores: dict[str, float]
    """All of `METRICS`, in [0, 1], `cider` in [0, 10]."""
    per_report: dict[str, NDArray[np.float64]]
    """Metric -> [N]. The corpus score is their mean for `rouge_l` and `cider`, not for BLEU."""
    intervals: dict[str, Interval]
    """One for each metric; empty if there were no resamples."""
    notes: list[str] = field(default_factory=list)
    """What is unusual, with the reason, one line each."""


def report_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    protocol: Protocol = "single",
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> TextScores:
    """Score generated reports; see `words.prepare` for how texts are cut and for the protocols.

    Args:
        hypotheses: N generated reports.
        references: N radiologists' reports.
        groups: [N] patients, resampled as a whole for the intervals; CIDEr keeps its word weights.
        draws: number of resamples; 0 for no intervals.

    Raises:
        DataError: no report, lengths that differ, a reference without words, an unknown protocol.
    """
    words, truth = prepare(hypotheses, references, protocol)
    counts = bleu_counts(words, truth)
    bleu_N4 = counts.per_report()
    per_report = {f"bleu_{n}": bleu_N4[:, n - 1] for n in range(1, ORDERS + 1)}
    per_report |= {"rouge_l": rouge_l(words, truth), "cider": cider(words, truth)}
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(counts.corpus(), 1)}
    scores |= {name: float(per_report[name].mean()) for name in ("rouge_l", "cider")}
    notes = []
    empty = sum(not report for report in words)
    if empty:
        notes.append(f"{empty:,} of {len(words):,} generated reports are empty and score 0")
    if len(words) == 1:
        notes.append("cider: 0 by definition, since it weighs words by how few of several reports have them")
    intervals: dict[str, Interval] = {}
    if draws:
        bleu_D4 = counts.corpus(np.concatenate(list(resample_counts(len(words), groups, draws, seed))))
        intervals |= {f"bleu_{n}": percentiles(bleu_D4[:, n - 1], seed=seed) for n in range(1, ORDERS + 1)}
        means = {name: per_report[name] for name in ("rouge_l", "cider")}
        intervals |= mean_intervals(means, groups, draws, seed)
    return TextScores(protocol, scores, per_report, intervals, notes)
