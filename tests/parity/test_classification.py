"""Classification scores and their intervals against scikit-learn, and against coverage of the truth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from medunifier_cli.errors import DataError
from medunifier_cli.scores.bootstrap import intervals, mean_intervals, resample_counts
from medunifier_cli.scores.classification import (
    accuracy,
    auroc,
    classification_scores,
    confusion_matrix,
    finding_scores,
    multilabel_scores,
)

NAMES = ("Atelectasis", "Cardiomegaly", "Edema", "Pleural Effusion", "Pneumonia")


def outputs(n: int, classes: int, seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know something of them; rounded ones are full of ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.standard_normal((n, classes)) + 0.8 * (np.arange(classes) == labels[:, None])
    if ties:
        logits = np.round(logits)
    scores = np.exp(logits)
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_binary_auroc_equals_scikit_learn(seed: int, ties: bool) -> None:
    labels, scores = outputs(400, 2, seed, ties)
    expected = metrics.roc_auc_score(labels, scores[:, 1])
    assert auroc(labels, scores[:, 1]) == pytest.approx(expected, abs=1e-12)
    got = classification_scores(labels, scores, ["absent", "present"])
    assert got.scores["auroc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_many_classes_equal_scikit_learn(ties: bool) -> None:
    labels, scores = outputs(500, 5, 7, ties)
    got = classification_scores(labels, scores, NAMES)
    predicted = scores.argmax(axis=1)
    assert got.scores["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert got.scores["auroc"] == pytest.approx(
        metrics.roc_auc_score(labels, scores, multi_class="ovr"), abs=1e-12
    )
    assert got.scores["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro"), abs=1e-12
    )
    np.testing.assert_array_equal(got.confusion_CC, metrics.confusion_matrix(labels, predicted))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, predicted)
    for c, name in enumerate(NAMES):
        row = got.per_class[name]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[c], recall[c], f1[c]))
    assert got.notes == []


def test_many_labels_equal_scikit_learn_where_known() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, (300, 5)).astype(float)
    scores = np.clip(0.5 + 0.2 * (truth - 0.5) + 0.2 * rng.standard_normal(truth.shape), 0, 1)
    whole = multilabel_scores(truth, scores, NAMES)
    assert whole.scores["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    for average in ("macro", "micro"):
        expected = metrics.f1_score(truth, scores >= 0.5, average=average)
        assert whole.scores[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
        said = finding_scores(truth, scores >= 0.5, NAMES)
        assert said.scores[f"{average}_f1"] == pytest.approx(expected, abs=1e-12)
        assert "auroc" not in said.scores

    truth[rng.random(truth.shape) < 0.3] = np.nan
    known = ~np.isnan(truth)
    columns = [metrics.roc_auc_score(truth[known[:, c], c], scores[known[:, c], c]) for c in range(5)]
    assert multilabel_scores(truth, scores, NAMES).scores["auroc"] == pytest.approx(
        np.mean(columns), abs=1e-12
    )


def test_an_absent_class_is_left_out_and_named() -> None:
    labels, scores = outputs(200, 5, 1, False)
    kept = labels != 2
    got = classification_scores(labels[kept], scores[kept], NAMES)
    columns = [c for c in range(5) if c != 2]
    expected = np.mean([metrics.roc_auc_score(labels[kept] == c, scores[kept, c]) for c in columns])
    assert got.scores["auroc"] == pytest.approx(expected, abs=1e-12)
    assert got.per_class["Edema"]["auroc"] is None
    assert [note for note in got.notes if "auroc" in note and "Edema" in note]
    # predicted at times though never true: F1 is 0 and counts, as in scikit-learn
    predicted = scores[kept].argmax(axis=1)
    assert got.scores["macro_f1"] == pytest.approx(metrics.f1_score(labels[kept], predicted, average="macro"))


def test_one_class_only_has_accuracy_and_no_auroc() -> None:
    scores = np.array([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]])
    got = classification_scores([1, 1, 1], scores, ["absent", "present"])
    assert got.scores["accuracy"] == pytest.approx(2 / 3)
    assert "auroc" not in got.scores
    assert "auroc: all samples have one class" in got.notes


def test_bad_input_is_said_in_one_line() -> None:
    good = np.full((4, 2), 0.5)
    cases = [
        (lambda: auroc([1, 1, 1], [0.1, 0.2, 0.3]), "all 3 samples are positive"),
        (lambda: auroc([0, 0], [0.1, 0.2]), "all 2 samples are negative"),
        (lambda: auroc([0, 1, -1], [0.1, 0.2, 0.3]), "labels 0 and 1"),
        (lambda: auroc([0, 1], [0.1, np.nan]), "NaN or infinite, the first in row 1"),
        (lambda: auroc([], []), "no sample"),
        (lambda: accuracy([], []), "no sample"),
        (lambda: accuracy([1, 2], [1]), "do not pair"),
        (lambda: classification_scores([], np.empty((0, 2)), ["a", "b"]), "no sample"),
        (lambda: classification_scores([0, 1, 2, 0], good, ["a", "b"]), "label outside 0..1, such as 2"),
        (lambda: classification_scores([0, 1, -1, 0], good, ["a", "b"]), "such as -1"),
        (lambda: classification_scores([0, 1], good, ["a", "b"]), "do not pair"),
        (lambda: classification_scores([0, 1, 1, 0], good, ["a", "b", "c"]), "3 classes"),
        (lambda: multilabel_scores(np.full((4, 2), -1), good, ["a", "b"]), "label policy"),
        (lambda: finding_scores(np.ones((4, 2)), good, ["a", "b"]), "0 or 1"),
        (lambda: confusion_matrix([0], [5], 2), "predicted class outside"),
        (lambda: mean_intervals({"bleu": [0.5, np.nan]}), "bleu is NaN for 1 of 2"),
        (lambda: mean_intervals({"bleu": []}), "needs samples"),
        (lambda: mean_intervals({"bleu": [0.5, 0.1]}, groups=["a"]), "1 groups for 2 samples"),
    ]
    for call, words in cases:
        with pytest.raises(DataError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_interval_of_a_mean_is_the_normal_one_for_many_samples() -> None:
    values = np.random.default_rng(0).exponential(size=2000)
    got = mean_intervals({"x": values}, draws=4000)["x"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        got = mean_intervals({"x": rng.normal(0.3, 1.0, 100)}, draws=300, seed=seed)["x"]
        covered += got.low <= 0.3 <= got.high
    assert 0.90 <= covered / 300 <= 0.98


def test_patients_are_drawn_whole() -> None:
    """Ten images of each patient that all agree carry the information of one: the interval must say so."""
    per_patient = np.random.default_rng(2).normal(size=60)
    images, patients = np.repeat(per_patient, 10), np.repeat(np.arange(60), 10)
    alone = mean_intervals({"x": per_patient}, seed=4)["x"]
    grouped = mean_intervals({"x": images}, groups=patients, seed=4)["x"]
    naive = mean_intervals({"x": images}, seed=4)["x"]
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_any_statistic_and_the_mean_agree_on_the_same_resamples() -> None:
    x = np.random.default_rng(5).random(80)
    direct = intervals(lambda index: {"x": float(x[index].mean())}, len(x), seed=9)["x"]
    assert (direct.low, direct.high) == pytest.approx(
        [getattr(mean_intervals({"x": x}, seed=9)["x"], side) for side in ("low", "high")]
    )
    assert mean_intervals({"x": x}, seed=9) == mean_intervals({"x": x}, seed=9)
    assert mean_intervals({"x": x}, seed=9) != mean_intervals({"x": x}, seed=10)


def test_interval_of_an_auroc_leaves_out_resamples_without_a_positive() -> None:
    truth = np.array([1, 1] + [0] * 30)
    scores = np.r_[0.9, 0.2, np.linspace(0, 0.8, 30)]
    got = intervals(lambda i: {"auroc": auroc(truth[i], scores[i])}, 32)["auroc"]
    without = sum(float((counts[:, :2].sum(axis=1) == 0).sum()) for counts in resample_counts(32))
    assert without > 0
    assert got.draws == 1000 - without
    assert got.low < auroc(truth, scores) < got.high


def test_a_metric_most_resamples_do_not_allow_has_no_interval() -> None:
    truth = np.array([1] + [0] * 30)
    scores = np.linspace(1, 0, 31)

    def statistic(index: np.ndarray) -> dict[str, float | None]:
        single = (index == 0).sum() == 1
        return {"x": float(scores[index].mean()), "rare": 1.0 if single else None}

    assert set(intervals(statistic, len(truth))) == {"x"}
