"""Score classifications: accuracy, AUROC, F1, confusion matrix.

Letters: N samples, C classes. A class that is absent from the truth has no AUROC: it is left out of the mean
and named, never counted as 0 or 0.5. Values equal scikit-learn's where that defines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one split."""

    scores: dict[str, float]
    """Metric name -> value in [0, 1]; a metric that is not defined here is absent."""
    per_class: dict[str, dict[str, float | None]]
    """Class name -> `auroc`, `precision`, `recall`, `f1` (None where not defined) and `positives`."""
    confusion_CC: Ints | None = None
    """Counts, rows are the truth; None for multi-label."""
    notes: list[str] = field(default_factory=list)
    """What was left out and why, one line each."""


def softmax(scores_NC: NDArray[Real], temperature: float = 1.0) -> NDArray[Real]:
    """Softmax over classes, in the precision of the scores."""
    shifted = np.exp((scores_NC - scores_NC.max(axis=1, keepdims=True)) / temperature)
    probability_NC: NDArray[Real] = shifted / shifted.sum(axis=1, keepdims=True)
    return probability_NC


def probabilities(logits_nC: NDArray[Real], one_class: bool) -> Floats:
    """Softmax over classes, or the sigmoid of each class; [n, C] in [0, 1]."""
    logits = logits_nC.astype(np.float64)
    # the sigmoid, written so that no exponential overflows
    return softmax(logits) if one_class else np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Share of samples whose predicted class is the true one.

    Raises:
        DataError: no sample, or two lengths.
    """
    truth, guess = np.asarray(labels), np.asarray(predicted)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise DataError(f"{truth.shape} labels and {guess.shape} predictions do not pair")
    if not len(truth):
        raise DataError("nothing to score: the split has no sample")
    return float((truth == guess).mean())


def auroc(truth: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half (Mann-Whitney).

    Args:
        truth: [N], 1 positive, 0 negative.
        scores: [N], higher means positive; any monotone scale.

    Raises:
        DataError: no sample, two lengths, one class only, a truth that is not 0 or 1, a score that is NaN.
    """
    truth_N, scores_N = np.asarray(truth), np.asarray(scores, dtype=np.float64)
    if truth_N.shape != scores_N.shape or truth_N.ndim != 1:
        raise DataError(f"{truth_N.shape} labels and {scores_N.shape} scores do not pair")
    if not len(truth_N):
        raise DataError("nothing to score: the split has no sample")
    _check_finite(scores_N)
    if not np.isin(truth_N, (0, 1)).all():
        raise DataError("AUROC takes labels 0 and 1; leave out blank and uncertain ones first")
    positive_N = truth_N.astype(bool)
    positives = int(positive_N.sum())
    negatives = len(truth_N) - positives
    if not positives or not negatives:
        only = "negative" if not positives else "positive"
        raise DataError(f"AUROC needs both classes, and all {len(truth_N):,} samples are {only}")
    _, index_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equal scores
    above = rank[index_N.reshape(-1)][positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> Ints:
    """[C, C] counts; rows are the truth, columns the prediction.

    Raises:
        DataError: two lengths, or a class outside 0..C-1.
    """
    truth, guess = np.asarray(labels), np.asarray(predicted)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise DataError(f"{truth.shape} labels and {guess.shape} predictions do not pair")
    for kind, values in (("label", truth), ("predicted class", guess)):
        wrong = values[(values < 0) | (values >= classes)]
        if len(wrong):
            raise DataError(
                f"{len(wrong):,} samples have a {kind} outside 0..{classes - 1}, such as {wrong[0]}"
            )
    flat = truth.astype(np.int64) * classes + guess.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def classification_scores(labels: ArrayLike, scores_NC: ArrayLike, classes: Sequence[str]) -> ClassScores:
    """One class per sample: `accuracy`, `auroc`, `macro_f1`, and all of them by class.

    The prediction is the highest score, the first one among equals. `auroc` of two classes is that of the
    second one; of more, the mean over classes, each against the rest. `macro_f1` is the mean over the classes
    that occur in truth or prediction.

    Args:
        labels: [N] integers in 0..C-1.
        scores_NC: probabilities; two classes may have any scores whose second column alone ranks the samples.
        classes: C names.

    Raises:
        DataError: no sample, shapes that differ, a label out of range, a score that is NaN or infinite.
    """
    truth_N, scores = np.asarray(labels), _table(scores_NC, classes)
    if truth_N.shape != (len(scores),):
        raise DataError(f"{len(scores):,} rows of scores and labels of shape {truth_N.shape} do not pair")
    predicted_N = scores.argmax(axis=1)
    confusion = confusion_matrix(truth_N, predicted_N, len(classes))
    out = ClassScores({"accuracy": accuracy(truth_N, predicted_N)}, {}, confusion)
    hits, positives, guesses = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    for c, name in enumerate(classes):
        out.per_class[name] = _f1(int(hits[c]), int(positives[c]), int(guesses[c]))
        out.per_class[name]["auroc"] = _auroc_or_none(truth_N == c, scores[:, c])
    _average(out, "macro_f1", "f1")
    if len(classes) == 2:
        value = _auroc_or_none(truth_N == 1, scores[:, 1])
        if value is not None:
            out.scores["auroc"] = value
        else:
            out.notes.append("auroc: all samples have one class")
    else:
        _average(out, "auroc", "auroc")
    return out


def multilabel_scores(
    truth_NC: ArrayLike, scores_NC: ArrayLike, classes: Sequence[str], threshold: float = 0.5
) -> ClassScores:
    """Any number of classes per sample: mean `auroc`, `macro_f1`, `micro_f1`; positive from `threshold` on.

    Args:
        truth_NC: 1 positive, 0 negative, NaN blank or uncertain, which leaves that one entry out.
        scores_NC: probabilities.
        classes: C names.

    Raises:
        DataError: no sample, shapes that differ, a truth that is none of the three, a score that is NaN.
    """
    scores = _table(scores_NC, classes)
    return _by_label(_truth(truth_NC, scores.shape), scores >= threshold, scores, classes)


def finding_scores(truth_NC: ArrayLike, predicted_NC: ArrayLike, classes: Sequence[str]) -> ClassScores:
    """Predicted against true findings: precision, recall and F1 of each, `macro_f1` and `micro_f1`.

    Args:
        truth_NC: 1 present, 0 absent, NaN unknown (left out).
        predicted_NC: 1 predicted, 0 not.
        classes: C names.

    Raises:
        DataError: no sample, shapes that differ, values that are none of these.
    """
    predicted = _table(predicted_NC, classes)
    if not np.isin(predicted, (0, 1)).all():
        raise DataError("predicted findings must be 0 or 1")
    return _by_label(_truth(truth_NC, predicted.shape), predicted == 1, None, classes)


def _by_label(
    truth_NC: Floats, predicted_NC: NDArray[np.bool_], scores_NC: Floats | None, classes: Sequence[str]
) -> ClassScores:
    out = ClassScores({}, {})
    totals = np.zeros(3, dtype=np.int64)
    for c, name in enumerate(classes):
        labelled = ~np.isnan(truth_NC[:, c])
        truth, predicted = truth_NC[labelled, c] == 1, predicted_NC[labelled, c]
        counts = int((truth & predicted).sum()), int(truth.sum()), int(predicted.sum())
        totals += counts
        out.per_class[name] = _f1(*counts)
        if scores_NC is not None:
            out.per_class[name]["auroc"] = _auroc_or_none(truth, scores_NC[labelled, c])
    _average(out, "macro_f1", "f1")
    micro = _f1(*totals.tolist())["f1"]
    if micro is not None:
        out.scores["micro_f1"] = micro
    if scores_NC is not None:
        _average(out, "auroc", "auroc")
    return out


def _f1(hits: int, positives: int, guesses: int) -> dict[str, float | None]:
    return {
        "precision": hits / guesses if guesses else None,
        "recall": hits / positives if positives else None,
        "f1": 2 * hits / (positives + guesses) if positives + guesses else None,
        "positives": positives,
    }


def _average(out: ClassScores, metric: str, of: str) -> None:
    """Mean of a column of `per_class` over the classes that have it; the others are noted."""
    values = {name: row[of] for name, row in out.per_class.items()}
    defined = [value for value in values.values() if value is not None]
    if defined:
        out.scores[metric] = float(np.mean(defined))
    absent = [name for name, value in values.items() if value is None]
    if absent:
        why = "needs positives and negatives" if of == "auroc" else "in neither truth nor prediction"
        out.notes.append(f"{metric}: left out {', '.join(absent)} ({why})")


def _auroc_or_none(positive: NDArray[np.bool_], scores: Floats) -> float | None:
    return auroc(positive, scores) if positive.any() and not positive.all() else None


def _table(values_NC: ArrayLike, classes: Sequence[str]) -> Floats:
    table = np.asarray(values_NC, dtype=np.float64)
    if table.ndim == 2 and not len(table):
        raise DataError("nothing to score: the split has no sample")
    if table.ndim != 2 or table.shape[1] != len(classes):
        raise DataError(f"scores must be [samples, {len(classes)} classes], not {list(table.shape)}")
    _check_finite(table)
    return table


def _truth(truth_NC: ArrayLike, shape: tuple[int, ...]) -> Floats:
    truth = np.asarray(truth_NC, dtype=np.float64)
    if truth.shape != shape:
        raise DataError(f"truth has shape {list(truth.shape)}, predictions {list(shape)}")
    if not (np.isin(truth, (0, 1)) | np.isnan(truth)).all():
        raise DataError("labels must be 1, 0 or NaN (blank, uncertain); apply the label policy first")
    return truth


def _check_finite(scores: Floats) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{len(wrong):,} of {len(scores):,} samples have a score that is NaN or infinite, "
            f"the first in row {wrong[0]}"
        )
