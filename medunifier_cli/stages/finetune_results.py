"""A fine-tuned model measured: scores of a split, the held-out result with intervals, the samples beside it.

n samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.labels.labelled import LabelledFeatures, LabelledImages, counts
from medunifier_cli.evaluate.results import Metric, Result, write_samples
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.scores.bootstrap import intervals
from medunifier_cli.scores.classification import (
    ClassScores,
    classification_scores,
    multilabel_scores,
    softmax,
)

TASK = "finetune"
CURVES = {"total": "Loss", "accuracy": "Accuracy", "auroc": "AUROC", "lr": "Learning rate"}
"""Numbers of the log that get a curve on the run's page: name -> heading."""
SHOWN = ("auroc", "accuracy", "macro_f1", "micro_f1")
INTERVAL_SEED = 0


def probabilities(logits_nC: NDArray[np.float32], one_class: bool) -> NDArray[np.float64]:
    """Softmax over classes, or the sigmoid of each."""
    logits = logits_nC.astype(np.float64)
    return softmax(logits) if one_class else np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def scores_of(target: NDArray[Any], scores_nC: NDArray[np.float64], classes: tuple[str, ...]) -> ClassScores:
    """AUROC, accuracy (one class a sample), F1, and all by class.

    Raises:
        DataError: a score that is not a number.
    """
    if target.ndim == 1:
        return classification_scores(target, scores_nC, classes)
    return multilabel_scores(target, scores_nC, classes)


def measure(
    tuned: PretrainedRun, recipe: FinetuneRecipe, source: LabelledImages | LabelledFeatures,
    logits_nC: NDArray[np.float32], classes: tuple[str, ...], origin: Mapping[str, Any],
) -> list[Metric]:  # fmt: skip
    """Score the held-out split; writes `results/finetune-<dataset>-<split>.json`, the samples beside it.

    Args:
        tuned: names the run, and step and hash of the best weights.
        origin: `samples`, the content of `samples.json`; `pretrained`, the run it started from; `best`, how
            the weights were chosen.
    """
    images = source.images if isinstance(source, LabelledFeatures) else source
    target, one_class = source.target, source.target.ndim == 1
    scores_nC = probabilities(logits_nC, one_class)
    found = scores_of(target, scores_nC, classes)
    spread = intervals(
        lambda rows: scores_of(target[rows], scores_nC[rows], classes).scores, len(target),
        groups=images.shards.index["subject"][images.rows], seed=INTERVAL_SEED,
    )  # fmt: skip
    floors = _floors(target, len(classes))
    metrics = [
        Metric.of(f"fine-tuned {name}", found.scores[name], spread.get(name), floors.get(name))
        for name in SHOWN
        if name in found.scores
    ]
    samples, split = origin["samples"], images.shards.split
    train = samples["train"]
    Result(
        TASK, recipe.data.dataset, split, images.folder, n=len(target), seed=recipe.train.seed,
        metrics=metrics, protocol=_protocol(recipe, one_class),
        more={
            "fraction": train["fraction"],
            "head": recipe.model.head,
            "frozen": recipe.model.freeze,
            "train": {name: value for name, value in train.items() if name != "keys"},
            "left_out": {
                role: {"unreadable": len(entry["unreadable"]), "without_label": entry["without_label"]}
                for role, entry in samples.items()
            },
            "pretrained": origin["pretrained"],
            "best": origin["best"],
            "classes": list(classes),
            "per_class": found.per_class,
            "confusion": None if found.confusion_CC is None else found.confusion_CC.tolist(),
            "notes": found.notes,
            "interval": {"level": 0.95, "draws": 1000, "seed": INTERVAL_SEED, "unit": "patient"},
        },
    ).write(tuned)  # fmt: skip
    write_samples(tuned.run, TASK, recipe.data.dataset, split, _rows(source.keys, target, scores_nC, classes))
    return metrics


def _rows(
    keys: list[str], target: NDArray[Any], scores_nC: NDArray[np.float64], classes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for key, truth, scores in zip(keys, target, scores_nC.tolist(), strict=True):
        if target.ndim == 1:
            said: Any = classes[int(truth)]
        else:
            said = {name: None if np.isnan(v) else int(v) for name, v in zip(classes, truth, strict=True)}
        yield {"key": key, "truth": said, "scores": dict(zip(classes, scores, strict=True))}


def _floors(target: NDArray[Any], classes: int) -> dict[str, float]:
    """What no skill reaches: always the most frequent class; every label said."""
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


def _protocol(recipe: FinetuneRecipe, one_class: bool) -> str:
    how = "head alone trained on frozen features" if recipe.model.freeze else "model and head trained"
    what = (
        "samples with exactly one class; softmax; auroc: of two classes, else the mean over classes"
        if one_class
        else "all samples with a known label; a sigmoid for each; means over labels, said from 0.5 on"
    )
    return (
        f"uni-modal queries, {how}; {what}; best epoch by the validation split, the test split measured "
        "once; floor: chance, the most frequent class, every label said; 95 % bootstrap over patients"
    )
