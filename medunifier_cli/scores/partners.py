"""Rank each image's own text among all texts, and each text's own image: retrieval that needs no classes.

Letters: N_i images, N_t texts, L_q queries of an image, E width of the ITC space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.scores.search import Ints, score_blocks


def partner_ranks(
    g_q: Any, g_t: ArrayLike, image_pairs: ArrayLike, text_pairs: ArrayLike
) -> tuple[Ints, Ints]:
    """Place of the best partner of each image among the texts, and of each text among the images, from 1.

    Candidates of equal score rank as in `search`: the lower index first. Memory grows with N, not N x N: the
    scores are computed twice, in tiles.

    Args:
        g_q: [N_i, L_q, E], L2-normalised; an array, memory map or HDF5 data set.
        g_t: [N_t, E], L2-normalised.
        image_pairs: [N_i] ids; a text with the same id is a partner. A hash of the text makes every copy of
            a report a right answer.
        text_pairs: [N_t] ids.

    Returns:
        (image to text [N_i], text to image [N_t]).

    Raises:
        DataError: as `search`; or an image or a text without a partner.
    """
    of_image, of_text = np.asarray(image_pairs), np.asarray(text_pairs)
    if len(of_image) != len(g_q) or len(of_text) != len(np.asarray(g_t)):
        raise DataError("there must be one pair id per image and per text")
    if not (np.isin(of_image, of_text).all() and np.isin(of_text, of_image).all()):
        raise DataError("an image without its text, or a text without its image, has no partner to rank")
    images, texts = len(of_image), len(of_text)
    text_index = np.arange(texts)
    best_I, best_T = np.full(images, -np.inf, np.float32), np.full(texts, -np.inf, np.float32)
    first_I, first_T = np.full(images, texts), np.full(texts, images)
    for rows, scores in score_blocks(g_q, g_t):
        own = np.where(of_image[rows, None] == of_text, scores, -np.inf)
        best_I[rows] = own.max(axis=1)
        first_I[rows] = own.argmax(axis=1)
        # Blocks come in any order of images, so that the first of equal ones has to be looked for.
        best = own.max(axis=0)
        first = np.where(own == best, rows[:, None], images).min(axis=0)
        first_T = np.where(
            best > best_T, first, np.where(best == best_T, np.minimum(first, first_T), first_T)
        )
        best_T = np.maximum(best, best_T)
    before_I, before_T = np.zeros(images, np.int64), np.zeros(texts, np.int64)
    for rows, scores in score_blocks(g_q, g_t):
        mine, its = best_I[rows, None], first_I[rows, None]
        before_I[rows] = ((scores > mine) | ((scores == mine) & (text_index < its))).sum(axis=1)
        before_T += ((scores > best_T) | ((scores == best_T) & (rows[:, None] < first_T))).sum(axis=0)
    return before_I + 1, before_T + 1


def chance_ranks(pairs: ArrayLike, candidate_pairs: ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """What a random order of the candidates reaches: `recall@K` for each K, `median rank` and `mean rank`.

    Exact: of N candidates, m of them partners, the first K hold none with probability C(N-m, K) / C(N, K).
    """
    names, counts = np.unique(np.asarray(candidate_pairs), return_counts=True)
    partners = counts[np.searchsorted(names, np.asarray(pairs))]
    total = int(counts.sum())
    kinds, weights = np.unique(partners, return_counts=True)
    share = weights / weights.sum()

    def found(depth: int) -> float:
        """Probability that a partner is among the first `depth`."""
        # C(N-m, K) / C(N, K) as a product of m factors, none of which overflows
        none = [np.prod(np.maximum(total - depth - np.arange(m), 0) / (total - np.arange(m))) for m in kinds]
        return float((share * (1 - np.array(none))).sum())

    chance = {f"recall@{k}": found(k) for k in ks}
    low, high = 1, total
    while low < high:  # the smallest depth that holds a partner of half of the queries
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) >= 0.5 else (middle + 1, high)
    return {
        **chance,
        "median rank": float(low),
        "mean rank": float((share * (total + 1) / (kinds + 1)).sum()),
    }


def rank_scores(ranks: Ints, ks: Iterable[int]) -> dict[str, NDArray[np.float64]]:
    """`recall@K` of each query (1 where its partner is among the first K), and `mean rank`: its rank."""
    recalls = {f"recall@{k}": (ranks <= k).astype(np.float64) for k in ks}
    return {**recalls, "mean rank": ranks.astype(np.float64)}
