"""Blockwise retrieval in both directions against a loop over rows; then similarities that exceed memory.

The slow side handles one query at a time: similarities, NumPy's argsort of the row, a Python loop over all
ranks. It is timed on evenly spread rows of each direction and scaled to all of them.

    python benchmarks/ranking.py [--pairs 5000] [--rows 100] [--large 20000] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.scores.ranking import retrieval

QUERIES, WIDTH, CLASSES, KS = 32, 256, 5, (1, 5, 10)


def draw(pairs: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings of pairs that mostly retrieve each other, and their classes."""
    rng = np.random.default_rng(0)
    g_t = rng.standard_normal((pairs, WIDTH), dtype=np.float32)
    g_q = rng.standard_normal((pairs, QUERIES, WIDTH), dtype=np.float32)
    g_q[:, 0] += 0.4 * g_t
    g_q /= np.sqrt(np.einsum("nle,nle->nl", g_q, g_q))[:, :, None]
    g_t /= np.sqrt(np.einsum("ne,ne->n", g_t, g_t))[:, None]
    return g_q, g_t, rng.integers(0, CLASSES, pairs)


def judge_row(scores: NDArray[np.float32], label: int, own: int, labels: list[int]) -> dict[str, float]:
    """Every metric of one query, by a walk down the whole ranking."""
    ranking = np.argsort(-scores, kind="stable")
    out: dict[str, float] = {}
    relevant = sum(other == label for other in labels)
    hits, gained, found = 0, 0.0, 0.0
    for rank, candidate in enumerate(ranking.tolist(), 1):
        if labels[candidate] == label:
            hits += 1
            gained += hits / rank
        if candidate == own:
            found = 1.0
        if rank in KS:
            out[f"map@{rank}"] = gained / hits if hits else 0.0
            out[f"standard_map@{rank}"] = gained / min(rank, relevant)
            out[f"precision@{rank}"] = hits / rank
            out[f"recall@{rank}"] = found
    return out


def per_row(
    g_q: NDArray[np.float32], g_t: NDArray[np.float32], labels: list[int], rows: NDArray[np.int64]
) -> dict[str, list[dict[str, float]]]:
    """The slow side on the chosen rows of each direction."""
    out: dict[str, list[dict[str, float]]] = {"image_to_text": [], "text_to_image": []}
    for i in rows.tolist():
        out["image_to_text"].append(judge_row((g_q[i] @ g_t.T).max(axis=0), labels[i], i, labels))
        out["text_to_image"].append(judge_row((g_q @ g_t[i]).max(axis=1), labels[i], i, labels))
    return out


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5_000)
    parser.add_argument(
        "--rows", type=int, default=100, help="rows of each direction that the slow side does"
    )
    parser.add_argument("--large", type=int, default=20_000, help="pairs of the memory run; 0 leaves it out")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    options = parser.parse_args()
    if options.tiny:
        options.pairs, options.rows, options.large = 60, 10, 80

    g_q, g_t, labels = draw(options.pairs)
    start = time.perf_counter()
    fast = retrieval(g_q, g_t, labels, KS)
    fast_s = time.perf_counter() - start

    rows = np.unique(np.linspace(0, options.pairs - 1, options.rows).astype(np.int64))
    start = time.perf_counter()
    slow = per_row(g_q, g_t, labels.tolist(), rows)
    slow_s = (time.perf_counter() - start) * options.pairs / len(rows)
    # A near tie may change places between two ways of summing, hence values and not bits.
    difference = max(
        abs(float(np.mean([row[name] for row in judged])) - float(fast.per_query[way][name][rows].mean()))
        for way, judged in slow.items()
        for name in judged[0]
    )
    print(f"{options.pairs:,} x {options.pairs:,}, {QUERIES} queries, both directions")
    print(f"blockwise: {fast_s:.2f} s")
    print(f"per row: {slow_s:.1f} s, scaled from {len(rows)} of {options.pairs:,} rows of each direction")
    print(f"largest difference of a metric on those rows: {difference:.2g}")
    result = {
        "benchmark": "ranking", "pairs": options.pairs, "queries": QUERIES, "fast_s": round(fast_s, 3),
        "slow_s": round(slow_s, 3), "slow_rows_timed": len(rows), "ratio": round(slow_s / fast_s, 2),
        "largest_difference": difference,
    }  # fmt: skip
    if options.large:
        del g_q, g_t, fast
        g_q, g_t, labels = draw(options.large)
        start = time.perf_counter()
        large = retrieval(g_q, g_t, labels, KS).per_query
        result |= {
            "large_pairs": options.large, "large_s": round(time.perf_counter() - start, 1),
            "large_peak_mib": round(peak_mib()), "large_within_2_gib": peak_mib() < 2048,
        }  # fmt: skip
        size = f"{options.large:,} x {options.large:,}"
        print(f"{size}: {result['large_s']} s, peak {result['large_peak_mib']} MiB of 2,048")
        print(f"image to text: {large['image_to_text']['map@1'].mean():.3f} mAP@1")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
