"""Scores from saved outputs: against scikit-learn, and what is said of files that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.tables.saved_outputs import score_outputs

CLASSES = ("Edema", "Pneumonia", "Atelectasis")


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_class_a_sample(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 3, 60), random.dirichlet(np.ones(3), 60)
    rows = [
        {"class": CLASSES[t], "probabilities": dict(zip(CLASSES, map(float, s), strict=True))}
        for t, s in zip(truth, scores, strict=True)
    ]
    found, notes = score_outputs(save(tmp_path / "a.jsonl", rows))
    values = {metric.name: metric for metric in found}
    assert values["accuracy"].value == pytest.approx(accuracy_score(truth, scores.argmax(axis=1)))
    assert values["macro_f1"].value == pytest.approx(f1_score(truth, scores.argmax(axis=1), average="macro"))
    assert values["auroc"].value == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))
    assert all(m.low is not None and m.value is not None and m.low < m.value for m in found)
    assert notes == []


def test_many_labels_a_sample_with_blanks(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    truth, scores = random.integers(0, 2, (50, 3)), random.random((50, 3))
    blank = random.random((50, 3)) < 0.2
    rows = [
        {
            "truth": {n: None if b else int(t) for n, t, b in zip(CLASSES, ts, bs, strict=True)},
            "scores": dict(zip(CLASSES, map(float, s), strict=True)),
        }
        for ts, s, bs in zip(truth, scores, blank, strict=True)
    ]
    found, _ = score_outputs(save(tmp_path / "a.jsonl", rows))
    wanted = [roc_auc_score(truth[~blank[:, c], c], scores[~blank[:, c], c]) for c in range(3)]
    assert next(m.value for m in found if m.name == "auroc") == pytest.approx(np.mean(wanted))


def test_rankings(tmp_path: Path) -> None:
    rows = [
        {"key": "a", "class": "x", "image_to_text": ["b", "c", "a"], "text_to_image": ["a", "b", "c"]},
        {"key": "b", "class": "y", "image_to_text": ["b", "a", "c"], "text_to_image": ["c", "b", "a"]},
        {"key": "c", "class": "x", "image_to_text": ["a", "b", "c"], "text_to_image": ["b", "a", "c"]},
    ]
    values = {metric.name: metric.value for metric in score_outputs(save(tmp_path / "a.jsonl", rows))[0]}
    assert values["image to text, map@1"] == pytest.approx(2 / 3)
    assert values["image to text, recall@1"] == pytest.approx(1 / 3)
    assert values["text to image, precision@1"] == pytest.approx(1 / 3)
    for row, text in zip(rows, (0, 0, 1), strict=True):
        row["text"] = text
    values = {metric.name: metric.value for metric in score_outputs(save(tmp_path / "b.jsonl", rows))[0]}
    assert values["image to text, recall@1"] == pytest.approx(2 / 3), "b says what a says"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line to score"),
        ("{\n", ":1: is no JSON"),
        ("[]\n", ":1: expected object"),
        ('{"a": 1}\n', "not saved outputs"),
        ('{"class": "a", "probabilities": {"b": 1.0}}\n', "not saved outputs"),
        ('{"class": "a", "probabilities": {"a": 1.0, "b": 0}}\n', "all 1 samples are a"),
        (
            '{"class": "a", "probabilities": {"a": NaN, "b": 0}}\n'
            '{"class": "b", "probabilities": {"a": 1, "b": 0}}\n',
            "1 of 2 samples have a score that is NaN",
        ),
    ],
)
def test_what_cannot_be_scored(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        score_outputs(path)
    assert str(path) in str(caught.value)
