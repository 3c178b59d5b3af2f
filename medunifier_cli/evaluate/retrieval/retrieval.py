"""The retrieval benchmark (paper, section 4): image to text and text to image within one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.results import Metric, write_result, write_samples
from medunifier_cli.evaluate.retrieval.embed import embed_split
from medunifier_cli.evaluate.retrieval.rerank import rerank as rerank_by_match
from medunifier_cli.scores.bootstrap import mean_intervals
from medunifier_cli.scores.ranking import ranking_scores, retrieval
from medunifier_cli.scores.search import Top

KS = (1, 5, 10)
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
SHOWN = ("map", "standard_map", "precision", "recall")
SEED = 0
"""Of the chance rankings and of the bootstrap."""
PROTOCOL = (
    "samples with text and exactly one class; similarity: max over queries of the cosine; relevant: the "
    "same class. map@K: the paper's (precision at hits, divided by the hits in the top K); standard_map@K: "
    "divided by min(K, relevant); recall@K: of the own partner, texts equal word for word being the same. "
    "Floor: one random ranking per query. Intervals: 95 %, 1,000 bootstrap resamples of patients"
)


@dataclass(frozen=True)
class _Set:
    """What is ranked: N pairs."""

    numbers: NDArray[np.int64]
    """Of the samples in the split."""
    keys: list[str]
    labels: NDArray[np.int64]
    digests: NDArray[np.int64]
    patients: NDArray[Any] | None
    ks: tuple[int, ...]


def benchmark(trained: PretrainedRun, asked: Benchmark, rerank: int = 0) -> dict[str, list[Metric]]:
    """Both directions; writes `results/retrieval-<dataset>-<split>.json`, and per-sample rankings beside it.

    Args:
        asked: opened with `need_text=False`.
        rerank: also order the best so many by ITM, as a result of its own (`retrieval-rerank<K>-...`).

    Returns:
        Heading -> metrics: by similarity, and re-ranked where that was asked for.

    Raises:
        CheckpointError: the run lacks ITC, or ITM with `rerank`.
        DataError: fewer than two classes among the samples; more candidates to re-rank than there are.
    """
    found = embed_split(trained, asked.source, asked.plugin.name, asked.split, asked.shards)
    used = found.has_text_n & (found.label_n >= 0)
    labels = found.label_n[used]
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"{asked.shards}: split {asked.split!r} has {len(labels):,} samples with text and exactly one "
            f"class, and {len(np.unique(labels))} classes among them; ranking needs two or more"
        )
    if rerank > len(labels):
        raise DataError(f"--rerank {rerank}: there are only {len(labels):,} candidates")
    numbers = np.flatnonzero(used)
    ks = tuple(k for k in KS if k <= len(labels))
    of = _Set(
        numbers, [found.keys[i] for i in numbers], labels, asked.source.digests[used],
        patients(asked.source, numbers), ks,
    )  # fmt: skip
    ranked = retrieval(
        found.image_nQE[used], found.text_nE[used], labels, sorted({*ks, rerank} - {0}), of.digests
    )
    left_out = {
        "left_out_without_one_class": int((found.label_n < 0).sum()),
        "left_out_without_text": int((~found.has_text_n & (found.label_n >= 0)).sum()),
    }
    out = {"by similarity": _write(trained, asked, of, "retrieval", PROTOCOL, ranked.top, left_out)}
    if rerank:
        to_text, to_image = rerank_by_match(
            trained, lambda i: asked.source.images(numbers[i]),
            lambda i: asked.source.token_ids(int(numbers[i])),
            ranked.top["image_to_text"], ranked.top["text_to_image"], rerank,
        )  # fmt: skip
        protocol = f"{PROTOCOL}. The best {rerank} of each ranking ordered by ITM (log-odds of a match)"
        out[f"best {rerank} re-ranked by ITM"] = _write(
            trained, asked, of, f"retrieval-rerank{rerank}", protocol,
            {"image_to_text": to_text, "text_to_image": to_image}, left_out,
        )  # fmt: skip
    return out


def _write(
    trained: PretrainedRun, asked: Benchmark, of: _Set, task: str, protocol: str, top: Mapping[str, Top],
    left_out: Mapping[str, int],
) -> list[Metric]:  # fmt: skip
    per_query = {
        way: ranking_scores(top[way].indices_QK, of.labels, of.labels, of.ks, of.digests, of.digests)
        for way in WAYS
    }
    chance = _chance(of)
    metrics = []
    for way, words in WAYS.items():
        spans = mean_intervals(per_query[way], of.patients, seed=SEED)
        for name in [f"{name}@{k}" for name in SHOWN for k in of.ks]:
            value, span = float(per_query[way][name].mean()), spans[name]
            metrics.append(Metric(f"{words}, {name}", value, chance[name], low=span.low, high=span.high))
    name, split = asked.plugin.name, asked.split
    samples = write_samples(trained.run, task, name, split, _rows(of, top, asked.plugin.classes))
    write_result(
        trained, task, name, split, asked.shards, protocol=protocol, n=len(of.labels), seed=SEED,
        metrics=metrics, more={**left_out, "samples": samples.name},
    )  # fmt: skip
    return metrics


def _rows(of: _Set, top: Mapping[str, Top], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Who was found, best first: keys of samples, whose images or texts are meant by direction. Equal numbers
    under `text` are equal texts."""
    deepest = max(of.ks)
    text_n = np.unique(of.digests, return_inverse=True)[1]
    for i, key in enumerate(of.keys):
        row: dict[str, Any] = {"key": key, "class": classes[of.labels[i]], "text": int(text_n[i])}
        for way in WAYS:
            row[way] = [of.keys[j] for j in top[way].indices_QK[i, :deepest]]
            row[f"{way}_scores"] = [round(float(s), 6) for s in top[way].scores_QK[i, :deepest]]
        yield row


def _chance(of: _Set) -> dict[str, float]:
    random = np.random.default_rng(SEED)
    ranked = np.stack([random.permutation(len(of.labels))[: max(of.ks)] for _ in of.labels])
    scores = ranking_scores(ranked, of.labels, of.labels, of.ks, of.digests, of.digests)
    return {name: float(values.mean()) for name, values in scores.items()}
