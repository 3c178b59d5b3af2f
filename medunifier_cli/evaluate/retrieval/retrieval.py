"""Measure retrieval (paper, section 4): image to text and text to image within one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.results import Metric, Result, write_samples
from medunifier_cli.evaluate.retrieval.embed import Chosen, embed_split
from medunifier_cli.evaluate.retrieval.pairs import measure_pairs
from medunifier_cli.evaluate.retrieval.rerank import rerank as rerank_by_match
from medunifier_cli.scores.bootstrap import mean_intervals
from medunifier_cli.scores.ranking import (
    CHANCE_QUERIES,
    DIRECTIONS,
    KS,
    chance_scores,
    ranking_scores,
    retrieval,
)
from medunifier_cli.scores.search import Top

SHOWN = ("map", "standard_map", "precision", "recall")
SEED = 0
"""Seed of the random rankings that give chance level, and of the bootstrap."""
PROTOCOL = (
    "samples with text and exactly one class; similarity: max over queries of the cosine; relevant: the "
    "same class. map@K: the paper's (precision at hits, divided by the hits in the top K); standard_map@K: "
    "divided by min(K, relevant); recall@K: of the own partner, texts equal word for word being the same. "
    f"Floor: one random ranking per query, of {CHANCE_QUERIES:,} at most. Intervals: 95 %, 1,000 bootstrap "
    "resamples of patients"
)


@dataclass(frozen=True)
class _Pairs:
    """The N image-text pairs that are ranked."""

    numbers: NDArray[np.int64]
    """Of the samples in the split."""
    keys: list[str]
    labels: NDArray[np.int64]
    digests: NDArray[np.int64]
    """Hash of each text: equal texts are each other's partners."""
    patients: NDArray[Any] | None
    ks: tuple[int, ...]
    """Those of `KS` that there are enough pairs for."""


@dataclass(frozen=True)
class _Ranked:
    """The samples that are ranked, by their place among them; picklable."""

    source: SplitSource
    numbers: NDArray[np.int64]
    """Of the samples in the split."""

    def images(self, places: NDArray[np.int64]) -> Tensor:
        return self.source.images_or_features(self.numbers[places])

    def token_ids(self, place: int) -> list[int]:
        return self.source.token_ids(int(self.numbers[place]))


def measure_retrieval(
    trained: PretrainedRun, benchmark: Benchmark, rerank: int = 0
) -> dict[str, list[Metric]]:
    """Both directions, by partner (`pairs.measure_pairs`) and by class where two or more classes are there.

    Writes `results/retrieval-<dataset>-<split>.json` for the classes, and the per-sample rankings.

    Args:
        benchmark: opened with `need_text=False`.
        rerank: also re-rank the best `rerank` candidates by ITM, as a result of its own
            (`retrieval-rerank<K>-...`); 0 for not.

    Returns:
        Heading -> metrics: of the exact pair, by class, and by class re-ranked if `rerank` is given.

    Raises:
        CheckpointError: the run lacks ITC, or ITM with `rerank`.
        DataError: fewer than two samples with text; more candidates to re-rank than there are, or no classes
            to re-rank by.
    """
    out = {"exact pair, by similarity": measure_pairs(trained, benchmark)}
    dataset, source = benchmark.plugin.name, benchmark.source
    features = embed_split(trained, source, dataset, benchmark.split, benchmark.shards)
    usable_n = features.has_text_n & (features.label_n >= 0)
    labels = features.label_n[usable_n]
    if len(np.unique(labels)) < 2:
        if rerank:
            raise DataError(
                f"{benchmark.shards}: split {benchmark.split!r} has {len(labels):,} samples with text and "
                f"exactly one class, of {len(np.unique(labels))} classes; --rerank needs two or more"
            )
        return out
    if rerank > len(labels):
        raise DataError(f"--rerank {rerank}: there are only {len(labels):,} candidates")
    numbers = np.flatnonzero(usable_n)
    pairs = _Pairs(
        numbers, [features.keys[i] for i in numbers], labels, source.digests[usable_n],
        patients(source, numbers), tuple(k for k in KS if k <= len(labels)),
    )  # fmt: skip
    ranked = retrieval(
        Chosen(features.image_nQE, numbers), features.text_nE[usable_n], labels,
        sorted({*pairs.ks, rerank} - {0}), pairs.digests,
    )  # fmt: skip
    left_out = {
        "left_out_without_one_class": int((features.label_n < 0).sum()),
        "left_out_without_text": int((~features.has_text_n & (features.label_n >= 0)).sum()),
    }
    heading = "same class, by similarity"
    out[heading] = _write(trained, benchmark, pairs, "retrieval", PROTOCOL, ranked.top, left_out)
    if rerank:
        ranked_samples = _Ranked(source, numbers)
        to_text, to_image = rerank_by_match(
            trained, ranked_samples.images, ranked_samples.token_ids, ranked.top["image_to_text"],
            ranked.top["text_to_image"], rerank,
        )  # fmt: skip
        protocol = f"{PROTOCOL}. The best {rerank} of each ranking ordered by ITM (log-odds of a match)"
        out[f"same class, best {rerank} re-ranked by ITM"] = _write(
            trained, benchmark, pairs, f"retrieval-rerank{rerank}", protocol,
            {"image_to_text": to_text, "text_to_image": to_image}, left_out,
        )  # fmt: skip
    return out


def _write(
    trained: PretrainedRun, benchmark: Benchmark, pairs: _Pairs, task: str, protocol: str,
    top: Mapping[str, Top], left_out: Mapping[str, int],
) -> list[Metric]:  # fmt: skip
    chance = chance_scores(pairs.labels, pairs.digests, pairs.ks, SEED)
    metrics = []
    for direction, words in DIRECTIONS.items():
        per_query = _scores(pairs, top[direction].indices_QK)
        spans = mean_intervals(per_query, pairs.patients, seed=SEED)
        metrics += [
            Metric.of(f"{words}, {name}", float(per_query[name].mean()), spans[name], chance[name])
            for name in (f"{measure}@{k}" for measure in SHOWN for k in pairs.ks)
        ]
    dataset, split, classes = benchmark.plugin.name, benchmark.split, benchmark.plugin.classes
    samples = write_samples(trained.run, task, dataset, split, _rows(pairs, top, classes))
    Result(
        task, dataset, split, benchmark.shards, protocol=protocol, n=len(pairs.labels), seed=SEED,
        metrics=metrics, more={**left_out, "classes": list(classes), "samples": samples.name},
    ).write(trained)  # fmt: skip
    return metrics


def _scores(pairs: _Pairs, indices_QK: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    return ranking_scores(indices_QK, pairs.labels, pairs.labels, pairs.ks, pairs.digests, pairs.digests)


def _rows(pairs: _Pairs, top: Mapping[str, Top], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The best candidates of each sample, best first: keys of samples whose text or image was retrieved.

    Equal numbers under `text` are equal texts.
    """
    deepest = max(pairs.ks)
    text_n = np.unique(pairs.digests, return_inverse=True)[1]
    for i, key in enumerate(pairs.keys):
        row: dict[str, Any] = {"key": key, "class": classes[pairs.labels[i]], "text": int(text_n[i])}
        for direction in DIRECTIONS:
            row[direction] = [pairs.keys[j] for j in top[direction].indices_QK[i, :deepest]]
            row[f"{direction}_scores"] = [round(float(s), 6) for s in top[direction].scores_QK[i, :deepest]]
        yield row
