"""Zero-shot classification with prompt ensembles (paper, section 4).

n images, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.results import Metric, write_result, write_samples
from medunifier_cli.evaluate.retrieval import prompts as prompt_sets
from medunifier_cli.evaluate.retrieval.embed import (
    BATCH,
    check_finite,
    embed_images,
    embed_split,
    embed_texts,
    need_itc,
)
from medunifier_cli.evaluate.user_images import Files
from medunifier_cli.model.vit import pixels
from medunifier_cli.page.confusion import save_confusion
from medunifier_cli.scores.bootstrap import intervals
from medunifier_cli.scores.classification import classification_scores, confusion_matrix

IMAGES_AT_ONCE = 512
"""Images compared with all prompts at once."""
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Ensemble:
    """Which prompts stand for a class, and how."""

    prompts: prompt_sets.Prompts
    """All there are, by class."""
    name: str = ""
    """Of the set, for the result file; empty for the data set's default one."""
    count: int = 15
    """Drawn per class; 0 for all."""
    over: str = "max"
    """`max` or `mean` over the prompts of a class."""
    seed: int = 0
    """Of the draw."""

    @property
    def task(self) -> str:
        """Name of the result: the paper's protocol is `zeroshot`."""
        return "-".join(["zeroshot", *filter(None, [self.name, "mean" if self.over == "mean" else ""])])


@dataclass(frozen=True)
class Outcome:
    """What a split gave."""

    metrics: list[Metric]
    notes: list[str]
    """What was left out of a mean, and why."""
    result: Path
    picture: Path
    """Of the confusion matrix."""


def class_scores(
    trained: PretrainedRun, image_nQE: NDArray[np.float32], prompts: prompt_sets.Prompts, ensemble: str
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


def probabilities(scores_nC: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax over classes; the published protocol has no temperature."""
    shifted = np.exp((scores_nC - scores_nC.max(axis=1, keepdims=True)) / temperature)
    out: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return out


def benchmark(trained: PretrainedRun, asked: Benchmark, ensemble: Ensemble) -> Outcome:
    """Classify a split's samples that have exactly one class.

    Writes `results/zeroshot...json` and, beside it, the probabilities and a picture of the confusion matrix.

    Args:
        asked: opened with `need_text=False`: an image needs no report here.

    Raises:
        DataError: no sample with exactly one class, or all of one class.
    """
    found = embed_split(trained, asked.source, asked.plugin.name, asked.split, asked.shards)
    classes = asked.plugin.classes
    one = found.label_n >= 0
    labels = found.label_n[one]
    if len(np.unique(labels)) < 2:
        there = (
            f"all {len(labels):,} samples of one class" if len(labels) else "no sample with exactly one class"
        )
        raise DataError(
            f"{asked.shards}: split {asked.split!r} has {there} ({asked.plugin.name}); a classification "
            "needs two or more"
        )
    drawn = prompt_sets.draw(ensemble.prompts, classes, ensemble.count, ensemble.seed)
    scores_nC = class_scores(trained, found.image_nQE[one], drawn, ensemble.over)
    made_nC = probabilities(scores_nC)
    scores = classification_scores(labels, made_nC, classes)
    metrics = _metrics(labels, made_nC, classes, patients(asked.source, np.flatnonzero(one)))
    confusion = confusion_matrix(labels, scores_nC.argmax(axis=1), len(classes))
    keys = [key for key, used in zip(found.keys, one, strict=True) if used]
    samples = write_samples(
        trained.run, ensemble.task, asked.plugin.name, asked.split,
        (_row(key, classes, row, int(label)) for key, row, label in zip(keys, made_nC, labels, strict=True)),
    )  # fmt: skip
    path = write_result(
        trained, ensemble.task, asked.plugin.name, asked.split, asked.shards, n=len(labels),
        seed=ensemble.seed, metrics=metrics, protocol=protocol(ensemble),
        more={
            "prompts": drawn, "prompts_hash": prompt_sets.fingerprint(drawn), "classes": list(classes),
            "confusion": confusion.tolist(), "per_class": scores.per_class,
            "notes": scores.notes,
            "left_out_without_one_class": int((~one).sum()), "samples": samples.name,
            "bootstrap_seed": BOOTSTRAP_SEED,
        },
    )  # fmt: skip
    picture = path.with_suffix(".confusion.png")
    save_confusion(confusion, classes, picture)
    return Outcome(metrics, scores.notes, path, picture)


def _metrics(
    labels: NDArray[np.int64], made_nC: NDArray[np.float32], classes: tuple[str, ...],
    groups: NDArray[np.uint64] | None,
) -> list[Metric]:  # fmt: skip
    share = np.bincount(labels, minlength=len(classes)) / len(labels)
    floors = {"accuracy": float(share.max()), "auroc": 0.5, "macro_f1": 1.0 / len(classes)}
    spans = intervals(
        lambda rows: classification_scores(labels[rows], made_nC[rows], classes).scores, len(labels), groups,
        seed=BOOTSTRAP_SEED,
    )  # fmt: skip
    out = []
    for name, value in classification_scores(labels, made_nC, classes).scores.items():
        span = spans.get(name)
        low, high = (span.low, span.high) if span else (None, None)
        out.append(Metric(f"zero-shot {name}", value, floors.get(name), low=low, high=high))
    return out


def protocol(ensemble: Ensemble) -> str:
    """How it was measured, in words."""
    drawn = f"{ensemble.count} prompts drawn per class" if ensemble.count else "all prompts"
    return (
        f"samples with exactly one class; {drawn}; max over queries, {ensemble.over} over prompts, softmax "
        "over classes; auroc and macro_f1: means over classes; floor of accuracy: always the most frequent "
        "class. Intervals: 95 %, 1,000 bootstrap resamples of patients"
    )


def classify_files(
    trained: PretrainedRun, files: Files, classes: tuple[str, ...], ensemble: Ensemble
) -> list[dict[str, Any]]:
    """Class probabilities of a person's own images.

    At the temperature the run learned for ITC: without one, as the benchmark has it, all classes look alike.

    Returns:
        Per file `file`, `class` (the likeliest), `probabilities` and `similarities` by class.
    """
    need_itc(trained)
    drawn = prompt_sets.draw(ensemble.prompts, classes, ensemble.count, ensemble.seed)
    parts = []
    for start in range(0, len(files.paths), BATCH):
        seen = pixels(files.image_B1HW[start : start + BATCH].to(trained.device))
        parts.append(embed_images(trained, seen))
    image_nQE = np.concatenate(parts)
    check_finite(trained, image_nQE)
    scores_nC = class_scores(trained, image_nQE, drawn, ensemble.over)
    temperature = float(trained.model.temperature.detach())
    made_nC = probabilities(scores_nC, temperature)
    return [
        {
            "file": str(path),
            "class": classes[int(made.argmax())],
            "probabilities": _by_class(classes, made),
            "similarities": _by_class(classes, scores),
        }
        for path, made, scores in zip(files.paths, made_nC, scores_nC, strict=True)
    ]


def _row(key: str, classes: tuple[str, ...], made_C: NDArray[np.float32], label: int) -> Mapping[str, Any]:
    return {
        "key": key,
        "class": classes[label],
        "predicted": classes[int(made_C.argmax())],
        "probabilities": _by_class(classes, made_C),
    }


def _by_class(classes: tuple[str, ...], values_C: NDArray[np.float32]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(classes, values_C, strict=True)}
