"""Report generation scores: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr; pycocoevalcap's values on the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.scores.bootstrap import DRAWS, Interval, mean_intervals, percentiles, resample_counts
from medunifier_cli.scores.text.bleu import ORDERS, bleu_counts
from medunifier_cli.scores.text.cider import cider
from medunifier_cli.scores.text.meteor import Corpus, MeteorUnavailableError, meteor
from medunifier_cli.scores.text.rouge import rouge_l
from medunifier_cli.scores.text.words import Protocol, prepare

METRICS = (*(f"bleu_{n}" for n in range(1, ORDERS + 1)), "meteor", "rouge_l", "cider")


@dataclass(frozen=True)
class TextScores:
    """Scores of N generated reports."""

    protocol: Protocol
    scores: dict[str, float | None]
    """All of `METRICS`; `meteor` is None where its program is missing. [0, 1], `cider` [0, 10]."""
    per_report: dict[str, NDArray[np.float64]]
    """Metric -> [N]. The corpus score is their mean for `rouge_l` and `cider`, not for BLEU and METEOR."""
    intervals: dict[str, Interval]
    """Of all that have a score."""
    notes: list[str] = field(default_factory=list)
    """What is missing or unusual and why, one line each."""


def report_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    protocol: Protocol = "single",
    with_meteor: bool = True,
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> TextScores:
    """Score generated reports; see `report_text.prepare` for how texts are cut and for the protocols.

    Args:
        hypotheses: N generated reports.
        references: N radiologists' reports.
        with_meteor: False saves the seconds that Java takes to start.
        groups: [N] patients, drawn whole for the intervals. CIDEr keeps the word weights of all reports.
        draws: resamples; 0 for no intervals.

    Raises:
        DataError: no report, lengths that differ, a reference without words, an unknown protocol.
    """
    said, truth = prepare(hypotheses, references, protocol)
    counts = bleu_counts(said, truth)
    each = counts.per_report()
    per_report = {f"bleu_{n}": each[:, n - 1] for n in range(1, ORDERS + 1)}
    scores: dict[str, float | None] = {f"bleu_{n}": float(v) for n, v in enumerate(counts.corpus(), 1)}
    notes = []
    scores["meteor"] = None
    counts_DN = np.concatenate(list(resample_counts(len(said), groups, draws, seed))) if draws else None
    intervals: dict[str, Interval] = {}
    if with_meteor:
        try:
            ((scores["meteor"], per_report["meteor"], resampled_D),) = meteor(
                [Corpus(said, truth, counts_DN)]
            )
            if draws:
                intervals["meteor"] = percentiles(resampled_D, seed=seed)
        except MeteorUnavailableError as error:
            notes.append(f"meteor: left empty. {error}")
    for name, values in (("rouge_l", rouge_l(said, truth)), ("cider", cider(said, truth))):
        per_report[name] = values
        scores[name] = float(values.mean())
    silent = sum(not words for words in said)
    if silent:
        notes.append(f"{silent:,} of {len(said):,} generated reports are empty and score 0")
    if len(said) == 1:
        notes.append("cider: 0 by definition, since it weighs words by how few of several reports have them")

    if counts_DN is not None:
        bleu_D4 = counts.corpus(counts_DN)
        intervals |= {f"bleu_{n}": percentiles(bleu_D4[:, n - 1], seed=seed) for n in range(1, ORDERS + 1)}
        means = {name: per_report[name] for name in ("rouge_l", "cider")}
        intervals |= mean_intervals(means, groups, draws, seed)
    return TextScores(protocol, scores, per_report, intervals, notes)
