"""Score saved per-sample outputs: those of our tasks, or another program's in the same form.

One JSON object per line. Classification: `class` (or `truth`: a name, or label -> 1, 0, null) and
`probabilities` (or `scores`): label -> number. Rankings: `key`, `class`, `image_to_text`, `text_to_image`,
the last two lists of keys, best first; and `text`, equal for equal texts, so that each counts as the other's
partner (without it, no two texts are equal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.results import Metric
from medunifier_cli.parsing import read_json_lines
from medunifier_cli.scores.bootstrap import intervals, mean_intervals
from medunifier_cli.scores.classification import ClassScores, classification_scores, multilabel_scores
from medunifier_cli.scores.ranking import DIRECTIONS, KS, ranking_scores

Rows = Sequence[Mapping[str, Any]]


def score_outputs(path: Path) -> tuple[list[Metric], list[str]]:
    """Metrics with 95 % intervals over samples (a file does not say whose images they are), and notes.

    Raises:
        DataError: no such file, a line that is not of that form, a score that is NaN, one class only.
    """
    rows = _read(path)
    try:
        if all(direction in rows[0] for direction in DIRECTIONS):
            return _rankings(rows), []
        return _classes(rows)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: not saved outputs; each line needs `class` and `probabilities` by class, or `key`, "
            "`class`, `image_to_text` and `text_to_image`"
        ) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read(path: Path) -> Rows:
    rows = read_json_lines(path, dict[str, Any], DataError, "each line is a JSON object")
    if not rows:
        raise DataError(f"{path}: no line to score")
    return rows


def _classes(rows: Rows) -> tuple[list[Metric], list[str]]:
    tables = [row["probabilities"] if "probabilities" in row else row["scores"] for row in rows]
    truths = [row["class"] if "class" in row else row["truth"] for row in rows]
    several = isinstance(truths[0], Mapping)
    labels = {name for truth in truths for name in (truth if several else [truth])}
    classes = list(tables[0]) if set(tables[0]) >= labels else sorted(labels | set(tables[0]))
    scores_NC = np.array([[table[name] for name in classes] for table in tables], dtype=np.float64)
    if several:
        truth_N = np.array([[truth.get(name) for name in classes] for truth in truths], dtype=np.float64)
    else:
        truth_N = np.array([classes.index(truth) for truth in truths])
        if len(np.unique(truth_N)) < 2:
            raise DataError(f"all {len(truth_N):,} samples are {truths[0]}; scores need two classes")

    def score(indices: Any) -> ClassScores:
        scores_of = multilabel_scores if several else classification_scores
        return scores_of(truth_N[indices], scores_NC[indices], classes)

    whole = score(np.arange(len(rows)))
    spans = intervals(lambda indices: score(indices).scores, len(rows))
    return [Metric.of(name, value, spans.get(name)) for name, value in whole.scores.items()], whole.notes


def _rankings(rows: Rows) -> list[Metric]:
    index = {row["key"]: i for i, row in enumerate(rows)}
    labels = np.unique([row["class"] for row in rows], return_inverse=True)[1].reshape(-1)
    texts = np.unique([str(row.get("text", row["key"])) for row in rows], return_inverse=True)[1].reshape(-1)
    if labels.max() == 0:
        raise DataError("all samples have one class; any ranking would be perfect")
    out = []
    for direction, words in DIRECTIONS.items():
        ranked = np.array([[index[key] for key in row[direction]] for row in rows])
        ks = [k for k in KS if k <= ranked.shape[1]]
        per_query = ranking_scores(ranked, labels, labels, ks, texts, texts)
        spans = mean_intervals(per_query)
        out += [Metric.of(f"{words}, {name}", float(v.mean()), spans[name]) for name, v in per_query.items()]
    return out
