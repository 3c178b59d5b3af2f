"""Classify images zero-shot, by their similarity to prompts that describe each class (paper, section 4).

n images, Q queries, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.render import render
from medunifier_cli.evaluate.results import Metric, Result, table, tables, write_samples
from medunifier_cli.evaluate.retrieval import prompts as prompt_sets
from medunifier_cli.evaluate.retrieval.embed import (
    Chosen,
    check_finite,
    embed_many_images,
    embed_split,
    embed_texts,
)
from medunifier_cli.page.confusion import save_confusion
from medunifier_cli.scores.bootstrap import intervals
from medunifier_cli.scores.classification import classification_scores, confusion_matrix, softmax

IMAGES_AT_ONCE = 512
"""Images compared with all prompts at once."""
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Ensemble:
    """The prompts that describe each class, and how their similarities become one score per class."""

    prompts: prompt_sets.Prompts
    """All available prompts by class."""
    name: str = ""
    """Name of the set in the result file; empty for the data set's default set."""
    count: int = 15
    """Prompts sampled per class; 0 uses all."""
    over: str = "max"
    """`max` or `mean` over the prompts of a class."""
    seed: int = 0
    """Seed of the sampled prompts."""
    drawn: int = 15
    """Prompts per class in the data set's literature, from which `count` may differ."""

    @property
    def task(self) -> str:
        """Name of the result: of the paper's protocol `zeroshot`; another one keeps a result of its own."""
        differs = [
            self.name, "mean" if self.over == "mean" else "",
            "" if self.count == self.drawn else f"{self.count or 'all'}-prompts",
            f"seed-{self.seed}" if self.seed and self.count else "",
        ]  # fmt: skip
        return "-".join(["zeroshot", *filter(None, differs)])

    def sampled(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """The prompts in use, by class."""
        return prompt_sets.sample_prompts(self.prompts, classes, self.count, self.seed)


@dataclass(frozen=True)
class Outcome:
    """One ensemble measured on a split."""

    metrics: list[Metric]
    notes: list[str]
    """Classes left out of a mean, with the reason."""
    content: Mapping[str, Any]
    """Of the result file."""
    picture: Path | None
    """Of the confusion matrix; None where this user may not write."""


def ensembles_of(
    plugin: DatasetPlugin, prompts: str, count: int | None, over: str, seed: int
) -> list[Ensemble]:
    """The ensembles that the options of `mu zeroshot` ask for, one for each prompt set.

    Args:
        prompts: see `select_prompt_sets`.
        count: prompts per class; None for the number used in the data set's literature.
    """
    drawn = plugin.prompts_drawn
    count = drawn if count is None else count
    sets = prompt_sets.select_prompt_sets(plugin, prompts)
    return [Ensemble(texts, name, count, over, seed, drawn) for name, texts in sets.items()]


def class_scores(
    trained: PretrainedRun,
    image_nQE: NDArray[np.float32] | Chosen,
    prompts: prompt_sets.Prompts,
    ensemble: str,
) -> NDArray[np.float32]:
    """Cosine similarity of each image to each class, [n, C] in [-1, 1].

    Args:
        image_nQE: ITC features; the best query counts.
        prompts: by class.
        ensemble: `max` or `mean` over the prompts of a class.
    """
    columns = []
    for texts in prompts.values():
        text_PE = embed_texts(trained, list(texts))
        check_finite(trained, text_PE)
        parts = [
            np.einsum("nqe,pe->nqp", image_nQE[start : start + IMAGES_AT_ONCE], text_PE).max(axis=1)
            for start in range(0, len(image_nQE), IMAGES_AT_ONCE)
        ]
        similarity = np.concatenate(parts)
        columns.append(similarity.max(axis=1) if ensemble == "max" else similarity.mean(axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


def measure_zeroshot(trained: PretrainedRun, benchmark: Benchmark, ensemble: Ensemble) -> Outcome:
    """Classify the samples of a split that have exactly one class.

    Writes `results/zeroshot...json` and, next to it, the probabilities and a picture of the confusion matrix.

    Args:
        benchmark: opened with `need_text=False`: an image needs no report here.

    Raises:
        DataError: no sample with exactly one class, or all of one class.
    """
    dataset, split, classes = benchmark.plugin.name, benchmark.split, benchmark.plugin.classes
    features = embed_split(trained, benchmark.source, dataset, split, benchmark.shards)
    usable_n = features.label_n >= 0
    labels = features.label_n[usable_n]
    if len(np.unique(labels)) < 2:
        content = (
            f"all {len(labels):,} samples of one class" if len(labels) else "no sample with exactly one class"
        )
        raise DataError(
            f"{benchmark.shards}: split {split!r} has {content} ({dataset}); a classification needs two or "
            "more"
        )
    prompts = ensemble.sampled(classes)
    scores_nC = class_scores(
        trained, Chosen(features.image_nQE, np.flatnonzero(usable_n)), prompts, ensemble.over
    )
    probability_nC = softmax(scores_nC)  # the published protocol has no temperature
    scores = classification_scores(labels, probability_nC, classes)
    metrics = _metrics(labels, probability_nC, classes, patients(benchmark.source, np.flatnonzero(usable_n)))
    confusion = confusion_matrix(labels, scores_nC.argmax(axis=1), len(classes))
    keys = [key for key, usable in zip(features.keys, usable_n, strict=True) if usable]
    rows = (_row(*row, classes) for row in zip(keys, probability_nC, labels.tolist(), strict=True))
    samples = write_samples(trained.run, ensemble.task, dataset, split, rows)
    result = Result(
        ensemble.task, dataset, split, benchmark.shards, n=len(labels), seed=ensemble.seed, metrics=metrics,
        protocol=protocol(ensemble),
        more={
            "prompt_set": ensemble.name or next(iter(benchmark.plugin.prompt_sets()), ""),
            "prompts_per_class": ensemble.count, "ensemble": ensemble.over,
            "prompts": prompts, "prompts_hash": prompt_sets.fingerprint(prompts), "classes": list(classes),
            "confusion": confusion.tolist(), "per_class": scores.per_class, "notes": scores.notes,
            "left_out_without_one_class": int((~usable_n).sum()), "samples": samples.name,
            "bootstrap_seed": BOOTSTRAP_SEED,
        },
    )  # fmt: skip
    picture = result.write(trained).with_suffix(".confusion.png")
    if trained.run.writable:
        save_confusion(confusion, classes, picture)
    written = picture if trained.run.writable else None
    return Outcome(metrics, scores.notes, result.content(trained), written)


def _metrics(
    labels: NDArray[np.int64], probability_nC: NDArray[np.float32], classes: tuple[str, ...],
    groups: NDArray[np.uint64] | None,
) -> list[Metric]:  # fmt: skip
    def scores(rows: NDArray[np.int64]) -> dict[str, float]:
        return classification_scores(labels[rows], probability_nC[rows], classes).scores

    share = np.bincount(labels, minlength=len(classes)) / len(labels)
    baseline = {"accuracy": float(share.max()), "auroc": 0.5, "macro_f1": 1.0 / len(classes)}
    spans = intervals(scores, len(labels), groups, seed=BOOTSTRAP_SEED)
    return [
        Metric.of(f"zero-shot {name}", value, spans.get(name), baseline.get(name))
        for name, value in scores(np.arange(len(labels))).items()
    ]


def protocol(ensemble: Ensemble) -> str:
    """How it was measured, in one sentence."""
    prompts = f"{ensemble.count} prompts drawn per class" if ensemble.count else "all prompts"
    return (
        f"samples with exactly one class; {prompts}; max over queries, {ensemble.over} over prompts, softmax "
        "over classes; auroc and macro_f1: means over classes; floor of accuracy: always the most frequent "
        "class. Intervals: 95 %, 1,000 bootstrap resamples of patients"
    )


def render_outcomes(outcomes: Sequence[tuple[Ensemble, Outcome]], default: str, form: str) -> str:
    """Results of one or several ensembles in a format.

    Args:
        default: name of the data set's default prompt set.
    """
    if form == "json":
        return json.dumps([outcome.content for _, outcome in outcomes], indent=1, sort_keys=True)
    if form == "csv":
        rows: list[list[object]] = [["result", "metric", "value", "low", "high", "baseline"]]
        for ensemble, outcome in outcomes:
            rows += [[ensemble.task, m.name, m.value, m.low, m.high, m.baseline] for m in outcome.metrics]
        return render(rows, form)
    if len(outcomes) == 1:
        return table(outcomes[0][1].metrics)
    return tables({f"prompts: {one.name or default}": outcome.metrics for one, outcome in outcomes})


def classify(
    trained: PretrainedRun, image_n1HW: Tensor, prompts: prompt_sets.Prompts, over: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Class probabilities [n, C] of images, and their similarities to the classes, [n, C] in [-1, 1].

    Probabilities use the temperature that the run learned for ITC: without one, as in the benchmark, all
    classes look equally likely.

    Args:
        image_n1HW: uint8 grey levels, on the CPU.
        prompts: by class; all of them are used.
        over: `max` or `mean` over the prompts of a class.

    Raises:
        CheckpointError: the run was trained without ITC, or its embeddings are not finite.
        DataError: a prompt that is empty or too long.
    """
    return class_probabilities(trained, embed_many_images(trained, image_n1HW), prompts, over)


def class_probabilities(
    trained: PretrainedRun, image_nQE: NDArray[np.float32], prompts: prompt_sets.Prompts, over: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """See `classify`."""
    scores_nC = class_scores(trained, image_nQE, prompts, over)
    return softmax(scores_nC, float(trained.model.temperature.detach())), scores_nC


def _row(
    key: str, probability_C: NDArray[np.float32], label: int, classes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "key": key,
        "class": classes[label],
        "predicted": classes[int(probability_C.argmax())],
        "probabilities": _by_class(classes, probability_C),
    }


def _by_class(classes: tuple[str, ...], values_C: NDArray[np.float32]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(classes, values_C, strict=True)}
