"""Zero-shot classification with prompt ensembles (paper, section 4; DESIGN row 21).

n images, Q queries, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.restore import Trained
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import DataError
from medunifier_cli.scores.classification import classification_scores, confusion_matrix
from medunifier_cli.tasks import prompts as prompt_sets
from medunifier_cli.tasks.embed import embed_split, embed_texts
from medunifier_cli.tasks.results import Metric, write_result

IMAGES_AT_ONCE = 512
"""Images compared with all prompts at once."""


def class_scores(
    trained: Trained, image_nQE: NDArray[np.float32], prompts: prompt_sets.Prompts, ensemble: str
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
        parts = [
            np.einsum("nqe,pe->nqp", image_nQE[start : start + IMAGES_AT_ONCE], text_PE).max(axis=1)
            for start in range(0, len(image_nQE), IMAGES_AT_ONCE)
        ]
        similarity = np.concatenate(parts)
        columns.append(similarity.max(axis=1) if ensemble == "max" else similarity.mean(axis=1))
    return np.stack(columns, axis=1).astype(np.float32)


def probabilities(scores_nC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over classes without a temperature, as the published protocol has it."""
    shifted = np.exp(scores_nC - scores_nC.max(axis=1, keepdims=True))
    out: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return out


def benchmark(
    trained: Trained, source: SplitSource, plugin: DatasetPlugin, split: str, shards: Path, *,
    prompts: prompt_sets.Prompts, prompt_name: str, count: int, ensemble: str, seed: int,
) -> tuple[list[Metric], NDArray[np.int64]]:  # fmt: skip
    """Classify a split's samples that have exactly one class; writes `results/zeroshot...json`.

    Returns:
        Metrics, and the confusion matrix [C, C] (rows: truth).

    Raises:
        DataError: no sample with exactly one class.
    """
    found = embed_split(trained, source, plugin.name, split, shards)
    one = found.label_n >= 0
    if not one.any():
        raise DataError(
            f"{shards}: no sample of split {split!r} has exactly one of the classes of {plugin.name}"
        )
    drawn = prompt_sets.draw(prompts, plugin.classes, count, seed)
    scores_nC = class_scores(trained, found.image_nQE[one], drawn, ensemble)
    labels = found.label_n[one]
    scores = classification_scores(labels, probabilities(scores_nC), plugin.classes)
    share = np.bincount(labels, minlength=len(plugin.classes)) / len(labels)
    floors = {"accuracy": float(share.max()), "auroc": 0.5, "macro_f1": 1.0 / len(plugin.classes)}
    metrics = [Metric(f"zero-shot {name}", value, floors.get(name)) for name, value in scores.scores.items()]
    confusion = confusion_matrix(labels, scores_nC.argmax(axis=1), len(plugin.classes))
    task = f"zeroshot-{prompt_name}" if prompt_name else "zeroshot"
    write_result(
        trained, task, plugin.name, split, shards, n=len(labels), seed=seed, metrics=metrics,
        protocol=(
            f"samples with exactly one class; max over queries, {ensemble} over prompts, softmax over "
            "classes; floor of accuracy: always the most frequent class"
        ),
        more={
            "prompts": drawn, "prompts_hash": prompt_sets.fingerprint(drawn), "classes": list(plugin.classes),
            "confusion": confusion.tolist(), "per_class": scores.per_class, "notes": scores.notes,
            "left_out_without_one_class": int((~one).sum()),
        },
    )  # fmt: skip
    return metrics, confusion
