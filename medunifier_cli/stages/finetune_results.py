"""Score a fine-tuned classifier: metrics of a split, and the held-out result with intervals and samples.

Letters: n samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.labels.labelled import LabelledFeatures, LabelledImages, counts
from medunifier_cli.data.labels.samples import EXTRA
from medunifier_cli.evaluate.benchmark import patients_of
from medunifier_cli.evaluate.results import Metric, Result, write_samples
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.scores.bootstrap import intervals
from medunifier_cli.scores.classification import (
    ClassScores,
    classification_scores,
    multilabel_scores,
    probabilities,
)

TASK = "finetune"
"""Name of the task in result files."""
CURVES = {"total": "Loss", "accuracy": "Accuracy", "auroc": "AUROC", "lr": "Learning rate"}
"""Numbers of the log that get a curve on the run's page: name -> heading."""
SHOWN = ("auroc", "accuracy", "macro_f1", "micro_f1")
"""Scores of the result's table, in order, where they are defined."""
INTERVAL_SEED = 0
"""Fixed, so that the interval of given predictions is one number and not a choice."""


def scores_of(target: NDArray[Any], scores_nC: NDArray[np.float64], classes: tuple[str, ...]) -> ClassScores:
    """AUROC, accuracy (where a sample has one class) and F1, over all classes and by class.

    Args:
        target: class indices [n], or labels [n, C] of 0, 1 and NaN (unknown).

    Raises:
        DataError: a score is not a number.
    """
    if target.ndim == 1:
        return classification_scores(target, scores_nC, classes)
    return multilabel_scores(target, scores_nC, classes)


def measure(
    tuned: PretrainedRun, recipe: FinetuneRecipe, source: LabelledImages | LabelledFeatures,
    logits_nC: NDArray[np.float32], classes: tuple[str, ...], origin: Mapping[str, Any],
) -> list[Metric]:  # fmt: skip
    """Score the held-out split; writes `results/finetune-<dataset>-<split>.json` and `.samples.jsonl`.

    Args:
        tuned: the run, and step and hash of its best weights.
        origin: `samples`, the content of `samples.json`; `pretrained`, the run it started from; `best`, the
            epoch chosen and its score on the validation split.
    """
    images = source.images if isinstance(source, LabelledFeatures) else source
    target, one_class = source.target, source.target.ndim == 1
    scores_nC = probabilities(logits_nC, one_class)
    result = scores_of(target, scores_nC, classes)
    spread = intervals(
        lambda rows: scores_of(target[rows], scores_nC[rows], classes).scores, len(target),
        groups=patients_of(images.shards, images.rows), seed=INTERVAL_SEED,
    )  # fmt: skip
    chance = _chance_levels(target, len(classes))
    metrics = [
        Metric.of(f"fine-tuned {name}", result.scores[name], spread.get(name), chance.get(name))
        for name in SHOWN
        if name in result.scores
    ]
    samples, split = origin["samples"], images.shards.split
    train = samples["train"]
    extra = {role.removeprefix(EXTRA): entry for role, entry in samples.items() if role.startswith(EXTRA)}
    # first: once the result is there, the same command takes the measurement for done
    write_samples(tuned.run, TASK, recipe.data.dataset, split, _rows(source.keys, target, scores_nC, classes))
    Result(
        TASK, recipe.data.dataset, split, images.folder, n=len(target), seed=recipe.train.seed,
        metrics=metrics, protocol=_protocol(recipe, one_class, tuned.precision),
        more={
            "fraction": train["fraction"],
            "head": recipe.model.head,
            "frozen": recipe.model.freeze,
            "balanced": recipe.model.balance,
            "rates": {"model": recipe.optim.model_lr, "head": recipe.optim.head_lr},
            "train": {name: value for name, value in train.items() if name != "keys"},
            "left_out": {
                role: {"unreadable": len(entry["unreadable"]), "without_label": entry["without_label"]}
                for role, entry in samples.items()
            },
            # only where there are some: the results of other runs keep their bytes
            **({"extra": list(extra), "extra_samples": extra} if extra else {}),
            "pretrained": origin["pretrained"],
            "best": origin["best"],
            "classes": list(classes),
            "per_class": result.per_class,
            "confusion": None if result.confusion_CC is None else result.confusion_CC.tolist(),
            "notes": result.notes,
            "interval": {"level": 0.95, "draws": 1000, "seed": INTERVAL_SEED, "unit": "patient"},
        },
    ).write(tuned)  # fmt: skip
    return metrics


def _rows(
    keys: list[str], target: NDArray[Any], scores_nC: NDArray[np.float64], classes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for key, truth, scores in zip(keys, target, scores_nC.tolist(), strict=True):
        if target.ndim == 1:
            labels: Any = classes[int(truth)]
        else:
            labels = {name: None if np.isnan(v) else int(v) for name, v in zip(classes, truth, strict=True)}
        yield {"key": key, "truth": labels, "scores": dict(zip(classes, scores, strict=True))}


def _chance_levels(target: NDArray[Any], classes: int) -> dict[str, float]:
    """Scores without skill: always the most frequent class, or every label predicted."""
    positive = counts(target, classes)[1]
    if target.ndim == 1:
        return {"auroc": 0.5, "accuracy": float(positive.max() / len(target)), "macro_f1": 1 / classes}
    known = (~np.isnan(target)).sum(axis=0)
    f1 = [2 * p / (p + k) for p, k in zip(positive.tolist(), known.tolist(), strict=True) if k]
    total = int(positive.sum())
    return {
        "auroc": 0.5,
        "macro_f1": float(np.mean(f1)),
        "micro_f1": 2 * total / (total + int(known.sum())),
    }


def _protocol(recipe: FinetuneRecipe, one_class: bool, precision: str) -> str:
    training = "head alone trained on frozen features" if recipe.model.freeze else "model and head trained"
    scoring = (
        "samples with exactly one class; softmax; auroc: of two classes, else the mean over classes"
        if one_class
        else "all samples with a known label; a sigmoid for each; means over labels, predicted from 0.5 on"
    )
    return (
        f"uni-modal queries, {training}; {scoring}; best epoch by the validation split, the test split "
        "measured once; baseline: chance, the most frequent class, every label predicted; 95 % bootstrap "
        f"over patients; forward passes in {precision}"
    )
