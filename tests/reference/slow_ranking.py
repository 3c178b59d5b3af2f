"""Retrieval by the book: one query at a time, loops over ranks, exact arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def slow_similarity(g_q: NDArray[np.float32], g_t: NDArray[np.float32]) -> NDArray[np.float64]:
    """Largest cosine over the queries, in float64."""
    out = np.empty((len(g_q), len(g_t)))
    for i, queries in enumerate(g_q.astype(np.float64)):
        for j, text in enumerate(g_t.astype(np.float64)):
            out[i, j] = max(float(np.dot(query, text)) for query in queries)
    return out


def slow_ranking(scores: NDArray[np.float64]) -> list[int]:
    """All candidates, best first; among equals the lower index first."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))


def slow_scores(scores_QN: NDArray[np.float64], labels: list[int], k: int) -> dict[str, list[float]]:
    """Each metric by its definition, one value a query; query i belongs to candidate i."""
    out: dict[str, list[float]] = {f"{m}@{k}": [] for m in ("map", "standard_map", "precision", "recall")}
    for i, row in enumerate(scores_QN):
        ranking = slow_ranking(row)
        hits, precisions = 0, []
        for rank in range(1, k + 1):
            if labels[ranking[rank - 1]] == labels[i]:
                hits += 1
                precisions.append(hits / rank)
        relevant = sum(label == labels[i] for label in labels)
        out[f"map@{k}"].append(sum(precisions) / hits if hits else 0.0)
        out[f"standard_map@{k}"].append(sum(precisions) / min(k, relevant))
        out[f"precision@{k}"].append(hits / k)
        out[f"recall@{k}"].append(float(i in ranking[:k]))
    return out
