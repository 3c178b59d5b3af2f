"""Measure retrieval of each sample's own partner: recall@K and ranks, which need pairs and no classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.results import Metric, Result, write_samples
from medunifier_cli.evaluate.retrieval.embed import Chosen, embed_split
from medunifier_cli.scores.bootstrap import intervals, mean_intervals
from medunifier_cli.scores.partners import chance_ranks, partner_ranks, rank_scores
from medunifier_cli.scores.ranking import DIRECTIONS, KS

TASK = "retrieval-pairs"
SEED = 0
"""Of the bootstrap."""
PROTOCOL = (
    "all samples with text; similarity: max over queries of the cosine; the partner of an image is its own "
    "text, of a text its own image; texts equal word for word are the same. Chance: exact, of a random "
    "order. Intervals: 95 %, 1,000 bootstrap resamples of patients"
)


def measure_pairs(trained: PretrainedRun, benchmark: Benchmark) -> list[Metric]:
    """Both directions; writes `results/retrieval-pairs-<dataset>-<split>.json` and the rank of each sample.

    Args:
        benchmark: opened with `need_text=False`.

    Raises:
        CheckpointError: the run lacks ITC.
        DataError: fewer than two samples with text.
    """
    dataset, source = benchmark.plugin.name, benchmark.source
    features = embed_split(trained, source, dataset, benchmark.split, benchmark.shards)
    numbers = np.flatnonzero(features.has_text_n)
    if len(numbers) < 2:
        raise DataError(
            f"{benchmark.shards}: split {benchmark.split!r} has {len(numbers):,} samples with text; ranking "
            "needs two or more"
        )
    partners = source.digests[numbers]
    ks = tuple(k for k in KS if k <= len(numbers))
    ranks = dict(
        zip(
            DIRECTIONS,
            partner_ranks(Chosen(features.image_nQE, numbers), features.text_nE[numbers], partners, partners),
            strict=True,
        )
    )
    groups = patients(source, numbers)
    chance = chance_ranks(partners, partners, ks)
    metrics: list[Metric] = []
    for direction, words in DIRECTIONS.items():
        metrics += _metrics(words, ranks[direction], ks, groups, chance)
    keys = [features.keys[i] for i in numbers]
    samples = write_samples(trained.run, TASK, dataset, benchmark.split, _rows(keys, ranks))
    Result(
        TASK, dataset, benchmark.split, benchmark.shards, protocol=PROTOCOL, n=len(numbers), seed=SEED,
        metrics=metrics, more={"samples": samples.name, "distinct_texts": len(np.unique(partners))},
    ).write(trained)  # fmt: skip
    return metrics


def _metrics(
    words: str, rank_n: NDArray[np.int64], ks: tuple[int, ...], groups: NDArray[Any] | None,
    chance: dict[str, float],
) -> list[Metric]:  # fmt: skip
    per_query = rank_scores(rank_n, ks)
    spans = mean_intervals(per_query, groups, seed=SEED)
    spans |= intervals(
        lambda rows: {"median rank": float(np.median(rank_n[rows]))}, len(rank_n), groups, seed=SEED
    )
    values = {name: float(values.mean()) for name, values in per_query.items()}
    values["median rank"] = float(np.median(rank_n))
    order = [*(f"recall@{k}" for k in ks), "median rank", "mean rank"]
    return [Metric.of(f"{words}, {name}", values[name], spans[name], chance[name]) for name in order]


def _rows(keys: list[str], ranks: dict[str, NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
    for i, key in enumerate(keys):
        yield {"key": key, **{f"{direction}_rank": int(rank[i]) for direction, rank in ranks.items()}}
