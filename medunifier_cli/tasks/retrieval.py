"""The retrieval benchmark (paper, section 4): image to text and text to image within one split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medunifier_cli.checkpoint.restore import Trained
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import DataError
from medunifier_cli.scores.ranking import ranking_scores, retrieval
from medunifier_cli.tasks.embed import embed_split
from medunifier_cli.tasks.results import Metric, write_result

KS = (1, 5, 10)
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
SHOWN = ("map", "standard_map", "precision", "recall")
CHANCE_SEED = 0
PROTOCOL = (
    "samples with exactly one class; similarity: max over queries of the cosine; relevant: the same class. "
    "map@K: the paper's (precision at hits, divided by the hits in the top K); standard_map@K: divided by "
    "min(K, relevant); recall@K: of the own partner. Floor: one random ranking per query"
)


def benchmark(trained: Trained, source: SplitSource, dataset: str, split: str, shards: Path) -> list[Metric]:
    """Both directions; writes `results/retrieval-<dataset>-<split>.json`.

    Raises:
        DataError: fewer than two classes among the samples that have exactly one.
    """
    found = embed_split(trained, source, dataset, split, shards)
    one = found.label_n >= 0
    if len(np.unique(found.label_n[one])) < 2:
        raise DataError(
            f"{shards}: split {split!r} has fewer than two classes to tell apart; nothing to rank"
        )
    labels = found.label_n[one]
    ks = tuple(k for k in KS if k <= len(labels))
    scores = retrieval(found.image_nQE[one], found.text_nE[one], labels, ks).scores
    chance = _chance(labels, ks)
    metrics = [
        Metric(f"{words}, {name}@{k}", scores[way][f"{name}@{k}"], chance[f"{name}@{k}"])
        for way, words in WAYS.items()
        for name in SHOWN
        for k in ks
    ]
    write_result(
        trained, "retrieval", dataset, split, shards, protocol=PROTOCOL, n=len(labels), seed=CHANCE_SEED,
        metrics=metrics, more={"left_out_without_one_class": int((~one).sum())},
    )  # fmt: skip
    return metrics


def _chance(labels: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    random = np.random.default_rng(CHANCE_SEED)
    ranked = np.stack([random.permutation(len(labels))[: max(ks)] for _ in labels])
    return {name: float(values.mean()) for name, values in ranking_scores(ranked, labels, labels, ks).items()}
