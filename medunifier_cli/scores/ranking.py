"""Score image-text rankings, in the paper's protocol and in the standard ones.

Letters: Q queries, each with its best K candidates of N; N_i images, N_t texts, L_q queries of an image, E
width of the ITC space. Ties are broken in `search.py`: lower candidate index first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.scores.search import Top, check_k, search

CHANCE_QUERIES = 10_000
"""Most queries whose random rankings give chance level; each orders all N candidates, so all take N^2."""
KS = (1, 5, 10)
"""Depths that the paper reports (tables 2 and 6)."""
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
"""Key of each direction, in rankings and per-sample outputs -> its name in metrics."""


@dataclass(frozen=True)
class Retrieval:
    """Rankings and scores by direction, the keys of `DIRECTIONS`."""

    per_query: dict[str, dict[str, NDArray[np.float64]]]
    """Metric name -> [N] values, one per query, which a bootstrap resamples; the metric is their mean."""
    top: dict[str, Top]


def ranking_scores(
    indices_QK: ArrayLike,
    query_labels: ArrayLike,
    candidate_labels: ArrayLike,
    ks: Sequence[int] = KS,
    query_pairs: ArrayLike | None = None,
    candidate_pairs: ArrayLike | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Judge rankings by class: a candidate is relevant when its label is the query's.

    For each K in `ks`, with the hits among the first K:

    - `map@K`, the paper's protocol (its code's `compute_precK`): precision at each hit's rank, summed and
      divided by the number of hits in the first K; 0 without a hit. It may fall as K grows.
    - `standard_map@K`: the same sum divided by min(K, relevant candidates there are).
    - `precision@K`: hits / K.
    - `recall@K`: 1 where the query's own partner is among the first K, else 0.

    Args:
        indices_QK: candidate indices, best first, as `search` gives them.
        query_labels: [Q] classes; `candidate_labels`: [N].
        query_pairs: [Q] ids; equal ids belong together. Default: query i belongs to candidate i. A hash of
            the text makes every image of one report, or every copy of a report, a right answer.
        candidate_pairs: [N] ids.

    Returns:
        metric name -> [Q] values in [0, 1]; the metric is their mean.

    Raises:
        DataError: no query, lengths that differ, fewer candidates ranked than max(ks), a K under 1.
    """
    indices = np.asarray(indices_QK, dtype=np.int64)
    of_query, of_candidate = np.asarray(query_labels), np.asarray(candidate_labels)
    if indices.ndim != 2 or not len(indices):
        raise DataError("no query to rank; the split is empty")
    if len(of_query) != len(indices):
        raise DataError(f"{len(of_query):,} query labels for {len(indices):,} rankings")
    if not ks:
        raise DataError("no K was given; name one or more, such as 1, 5, 10")
    for k in ks:
        check_k(k, indices.shape[1])
    pair_of_query = np.arange(len(indices)) if query_pairs is None else np.asarray(query_pairs)
    pair_of_candidate = (
        np.arange(len(of_candidate)) if candidate_pairs is None else np.asarray(candidate_pairs)
    )
    if len(pair_of_query) != len(indices) or len(pair_of_candidate) != len(of_candidate):
        raise DataError("there must be one pair id per query and per candidate")

    hit_QK = of_candidate[indices] == of_query[:, None]
    partner_QK = pair_of_candidate[indices] == pair_of_query[:, None]
    names, counts = np.unique(of_candidate, return_counts=True)
    # The query's class may be absent from the candidates: then it has no relevant one.
    index_Q = np.searchsorted(names, of_query).clip(max=len(names) - 1)
    relevant_Q = np.where(names[index_Q] == of_query, counts[index_Q], 0)
    hits_QK = np.cumsum(hit_QK, axis=1)
    precision_QK = hits_QK / np.arange(1, indices.shape[1] + 1)
    gained_QK = np.cumsum(np.where(hit_QK, precision_QK, 0.0), axis=1)

    out = {}
    for k in ks:
        gained, hits = gained_QK[:, k - 1], hits_QK[:, k - 1]
        out[f"map@{k}"] = gained / np.maximum(hits, 1)
        out[f"standard_map@{k}"] = gained / np.maximum(np.minimum(relevant_Q, k), 1)
        out[f"precision@{k}"] = precision_QK[:, k - 1]
        out[f"recall@{k}"] = partner_QK[:, :k].any(axis=1).astype(np.float64)
    return out


def chance_scores(
    labels: NDArray[np.int64], pairs: NDArray[np.int64], ks: Sequence[int], seed: int = 0
) -> dict[str, float]:
    """Every metric of one random ranking for each of at most `CHANCE_QUERIES` queries, spread evenly.

    Args:
        labels: [N] class of each pair.
        pairs: [N] ids, see `ranking_scores`.
    """
    n, deepest = len(labels), max(ks)
    queries = np.linspace(0, n - 1, min(n, CHANCE_QUERIES)).round().astype(np.int64)
    random = np.random.default_rng(seed)
    ranked = np.empty((len(queries), deepest), np.int64)
    for row in ranked:
        row[:] = random.permutation(n)[:deepest]  # a copy: a view would keep all n numbers
    scores = ranking_scores(ranked, labels[queries], labels, ks, pairs[queries], pairs)
    return {name: float(values.mean()) for name, values in scores.items()}


def retrieval(
    g_q: Any,
    g_t: ArrayLike,
    labels: ArrayLike,
    ks: Sequence[int] = KS,
    pairs: ArrayLike | None = None,
    block: int = 256,
) -> Retrieval:
    """Both directions of the retrieval benchmark on N pairs: image i and text i belong together.

    Args:
        g_q: [N, L_q, E], as in `similarity`.
        g_t: [N, E].
        labels: [N] class of each pair (MIMIC 5x200: five classes of 200).
        pairs: [N] ids for `recall@K`, see `ranking_scores`.

    Raises:
        DataError: as `search` and `ranking_scores`; or one class only, where every ranking is perfect.
    """
    classes = np.asarray(labels)
    if not len(g_q) == len(np.asarray(g_t)) == len(classes):
        raise DataError(
            f"{len(g_q):,} images, {len(np.asarray(g_t)):,} texts and {len(classes):,} labels do not pair"
        )
    if len(classes) and len(np.unique(classes)) == 1:
        raise DataError(
            "all pairs have one class, so that any ranking would be perfect; use a split with two or more"
        )
    to_text, to_image = search(g_q, g_t, max(ks, default=0), block)
    top = dict(zip(DIRECTIONS, (to_text, to_image), strict=True))
    per_query = {
        direction: ranking_scores(ranked.indices_QK, classes, classes, ks, pairs, pairs)
        for direction, ranked in top.items()
    }
    return Retrieval(per_query, top)
