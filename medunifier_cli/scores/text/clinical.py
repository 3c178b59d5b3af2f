"""Clinical scores of reports from the `radeval` package (extra `clinical`), if installed with its weights.

CheXbert (Smit et al. 2020) reads 14 observations out of both reports, RadGraph (Jain et al. 2021) entities
and relations. RadCliQ-v1 (Yu et al. 2023) predicts from RadGraph, CheXbert, BERTScore and BLEU how many
errors a radiologist would find, RaTEScore (Zhao et al. 2024) compares entities by their embeddings. Weights
are never fetched by us.

N reports, C observations, D resamples.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.scores.bootstrap import DRAWS, Interval, mean_intervals, percentiles, resample_counts

CHEXBERT = tuple(f"CheXbert {kind}-F1, {n} observations" for n in (14, 5) for kind in ("micro", "macro"))
MEANS = {
    "radgraph": {
        "RadGraph F1, entities": "radgraph_simple",
        "RadGraph F1, entities and whether related": "radgraph_partial",
        "RadGraph F1, entities and relations": "radgraph_complete",
    },
    "radcliq": {"RadCliQ-v1": "radcliq_v1"},
    "ratescore": {"RaTEScore": "ratescore"},
}
"""Metric of radeval -> our name of a mean over reports -> its key in radeval's answer and in our file."""
SCORERS = ("f1chexbert", *MEANS)
CLINICAL = (*CHEXBERT, *(name for keys in MEANS.values() for name in keys))
POLICY = "CheXbert: an uncertain observation counts as present; a denied one and a blank one as absent"
"""What radeval's scorer does with the four answers of CheXbert."""
DIRECTION = (
    "RadCliQ-v1: a standardised number of errors, so lower is better; the mean over reports, where radeval's "
    "own total is 1 divided by this mean"
)
FETCH_ANY = (
    "import radeval, sys; sys.modules['RadEval'] = radeval; radeval.RadEval(['{}'])(['clear'], ['clear'])"
)
FETCH = {"f1chexbert": "from radeval.metrics.f1chexbert import F1CheXbert; F1CheXbert(device='cpu')"}
"""What fetches the weights of a metric, where there is a network."""
NOTES = {"f1chexbert": POLICY, "radcliq": DIRECTION}


@dataclass
class ClinicalScores:
    """Clinical scores of N generated reports: those that could be computed."""

    scores: dict[str, float] = field(default_factory=dict)
    """By the names of `CLINICAL`, all in [0, 1] but RadCliQ-v1."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """One for each score; empty if there were no resamples."""
    per_report: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Key -> [N]. The score of all reports is their mean, but for CheXbert: there it is the share of the 14
    or 5 observations on which both reports agree, while F1 counts over all reports."""
    notes: list[str] = field(default_factory=list)
    """One line about each thing that is missing, and about each policy used."""


class _OtherVersionError(Exception):
    """radeval gives something else than we know; the text names what is missing."""


def clinical_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> ClinicalScores:
    """CheXbert F1, RadGraph F1, RadCliQ-v1 and RaTEScore.

    Args:
        hypotheses: N generated reports.
        references: N radiologists' reports.
        groups: [N] patients, resampled as a whole for the intervals. RadCliQ keeps its word weights.
        draws: number of resamples; 0 for no intervals.
    """
    out = ClinicalScores()
    if importlib.util.find_spec("radeval") is None:
        out.notes.append(
            "clinical scores: left empty. They need `pip install 'medunifier[clinical]'` and Python 3.11"
        )
        return out
    for metric in SCORERS:
        try:
            if metric == "f1chexbert":
                _add_chexbert(out, list(hypotheses), list(references), groups, draws, seed)
            else:
                _add_means(out, metric, list(hypotheses), list(references), groups, draws, seed)
        except ImportError as error:
            out.notes.append(f"{metric}: left empty. radeval could not be imported: no `{error.name}`")
        except _OtherVersionError as error:
            out.notes.append(f"{metric}: left empty. This version of radeval gives no {error}; 2.2.1 does")
        except Exception as error:  # of any kind without its weights; its text may quote a report
            out.notes.append(
                f"{metric}: left empty ({type(error).__name__}). Its weights may be missing; where there is "
                f'a network, fetch them with `python -c "{FETCH.get(metric, FETCH_ANY.format(metric))}"`'
            )
        else:
            out.notes += [NOTES[metric]] if metric in NOTES else []
    return out


def _add_means(
    out: ClinicalScores, metric: str, hypotheses: list[str], references: list[str], groups: Any, draws: int,
    seed: int,
) -> None:  # fmt: skip
    """One metric that is a mean over reports."""
    with _offline():
        import radeval  # type: ignore[import-untyped,import-not-found]

        # Its RadGraph of 2.2.1 still imports itself by the package's former name.
        sys.modules.setdefault("RadEval", radeval)
        scorer = radeval.RadEval(metrics=[metric], per_sample=True, show_progress=False)
        answer: dict[str, Any] = scorer(refs=references, hyps=hypotheses)
    columns = {}
    for key in MEANS[metric].values():
        values = np.asarray(answer.get(key), dtype=np.float64)
        if values.shape != (len(references),) or not np.isfinite(values).all():
            raise _OtherVersionError(f"`{key}` of each report as a finite number")
        columns[key] = values
    spans = mean_intervals(columns, groups, draws, seed) if draws else {}
    out.per_report |= columns
    out.scores |= {name: float(columns[key].mean()) for name, key in MEANS[metric].items()}
    out.intervals |= {name: spans[key] for name, key in MEANS[metric].items() if key in spans}


def _add_chexbert(
    out: ClinicalScores, hypotheses: list[str], references: list[str], groups: Any, draws: int, seed: int
) -> None:
    """F1 of CheXbert's observations, from its answers for each report.

    radeval's own totals are rounded, have no answers for a resample, and ask for a GPU whether there is one
    or not.
    """
    with _offline():
        import torch
        from radeval.metrics.f1chexbert import F1CheXbert  # type: ignore[import-untyped,import-not-found]

        scorer = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")
        if not all(hasattr(scorer, name) for name in ("get_labels", "TARGET_NAMES", "TOP5")):
            raise _OtherVersionError("`F1CheXbert.get_labels`")
        truth_NC, asserted_NC = (
            np.asarray(scorer.get_labels(texts), dtype=np.float64) for texts in (references, hypotheses)
        )
    names = list(scorer.TARGET_NAMES)
    if not truth_NC.shape == asserted_NC.shape == (len(references), len(names)) or len(names) != 14:
        raise _OtherVersionError("14 observations of each report")
    counts_DN = np.ones((1, len(references)))
    if draws:
        counts_DN = np.concatenate([counts_DN, *resample_counts(len(references), groups, draws, seed)])
    for columns in (list(range(len(names))), [names.index(name) for name in scorer.TOP5]):
        truth, asserted = truth_NC[:, columns], asserted_NC[:, columns]
        micro_D, macro_D = _f1(counts_DN @ (2 * truth * asserted), counts_DN @ (truth + asserted))
        for kind, values_D in (("micro", micro_D), ("macro", macro_D)):
            name = f"CheXbert {kind}-F1, {len(columns)} observations"
            out.scores[name] = float(values_D[0])
            if draws:
                out.intervals[name] = percentiles(values_D[1:], seed=seed)
        out.per_report[f"chexbert_agreement_{len(columns)}"] = (truth == asserted).mean(axis=1)


def _f1(
    both_DC: NDArray[np.float64], size_DC: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Micro- and macro-F1, [D] each. An observation that neither side has counts as 0, as published CheXbert
    scores have it (scikit-learn's report)."""
    f1_DC = both_DC / np.maximum(size_DC, 1)
    return both_DC.sum(axis=1) / np.maximum(size_DC.sum(axis=1), 1), f1_DC.mean(axis=1)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep radeval from the network: from the hub, and from NLTK's data, which it fetches on import for other
    metrics than these."""
    from huggingface_hub import constants

    with ExitStack() as stack:
        stack.enter_context(_replaced(os.environ, "HF_HUB_OFFLINE", "1"))
        stack.enter_context(_replaced(vars(constants), "HF_HUB_OFFLINE", True))  # read once, on first import
        if importlib.util.find_spec("nltk") is not None:
            import nltk  # type: ignore[import-untyped,import-not-found]

            stack.enter_context(_replaced(vars(nltk), "download", lambda *_, **__: False))
        yield


@contextmanager
def _replaced(where: MutableMapping[str, Any], name: str, value: object) -> Iterator[None]:
    existed, before = name in where, where.get(name)
    where[name] = value
    try:
        yield
    finally:
        if existed:
            where[name] = before
        else:
            del where[name]
