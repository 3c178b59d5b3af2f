"""Exact top-K nearest neighbours by cosine similarity, in blocks of bounded memory.

Similarity is the paper's (section 3.3.1): the largest cosine over an image's queries, both ways. It is
computed in tiles and only the best K of a query are kept, so memory grows with K and not with N x N.

Letters: N_i images, N_t texts, L_q queries of an image, E width of the ITC space; Q rankings of K candidates.

Ties: scores equal in float32 rank by candidate index, lower first. Embeddings equal bit by bit (the same
report twice) have equal scores: BLAS alone would let their last bit depend on where they lie in a tile.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from medunifier_cli.errors import DataError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

TEXT_TILE = 1024
"""Texts per matrix product: with 256 images the running maximum is 1 MiB and stays in the cache."""
MOST_THREADS = 8
"""Each holds a block of scores, and as many wait to be read."""
BLOCK_SCORES = 1 << 24
"""Most scores of a block, 64 MiB: beyond 65,536 texts it has fewer images than asked for."""
NORM_SLACK = 0.02
"""How far a norm may be from 1: embeddings normalised in bfloat16 are off by up to 2^-8."""


@dataclass(frozen=True)
class Top:
    """The best K candidates of Q queries, best first."""

    indices_QK: Ints
    scores_QK: Floats


def similarity(g_q: Any, g_t: ArrayLike, block: int = 256) -> Floats:
    """The whole similarity matrix, maximum over queries of the cosine.

    Args:
        g_q: [N_i, L_q, E], L2-normalised; an array, memory map or HDF5 data set,
            read `block` images at a time.
        g_t: [N_t, E], L2-normalised.

    Returns:
        [N_i, N_t] float32 in [-1, 1]. Use `search` where N_i * N_t * 4 bytes are too many.

    Raises:
        DataError: nothing to compare, widths that differ, or an embedding that is not finite and of norm 1.
    """
    texts = _checked_texts(g_q, g_t)
    out = np.empty((len(g_q), len(texts)), dtype=np.float32)
    for rows, scores in _blocks(g_q, texts, block):
        out[rows] = scores
    return out


def search(g_q: Any, g_t: ArrayLike, k: int, block: int = 256) -> tuple[Top, Top]:
    """The best `k` texts of each image and the best `k` images of each text, in one pass over the tiles.

    Args:
        g_q: [N_i, L_q, E], as in `similarity`.
        g_t: [N_t, E].
        k: at most N_i and N_t.

    Returns:
        (image to text: Q = N_i, text to image: Q = N_t).

    Raises:
        DataError: as `similarity`, or fewer candidates than `k`.
    """
    texts = _checked_texts(g_q, g_t)
    images = len(g_q)
    check_k(k, min(images, len(texts)))
    per_image = Top(np.empty((images, k), dtype=np.int64), np.empty((images, k), dtype=np.float32))
    best = _Entries.none()
    # Below a text's least score so far no image can still be among its best k.
    least_T = np.full(len(texts), -np.inf, dtype=np.float32)
    for rows, scores in _blocks(g_q, texts, block):
        top = top_k(scores, k)
        per_image.indices_QK[rows] = top.indices_QK
        per_image.scores_QK[rows] = top.scores_QK
        if not len(best.query) and len(rows) >= k:  # else the first tile would enter as a whole
            least_T = np.partition(scores, -k, axis=0)[-k]
        row, text = np.nonzero(scores >= least_T)
        best = best.joined(_Entries(text, rows[row], scores[row, text])).best(k)
        if len(best.query) == len(texts) * k:
            least_T = best.score[k - 1 :: k]
    return per_image, best.table(k)


def score_blocks(g_q: Any, g_t: ArrayLike, block: int = 256) -> Iterator[tuple[Ints, Floats]]:
    """The similarity matrix in blocks: (indices of images [b], their scores [b, N_t]), each image once.

    Raises:
        DataError: as `similarity`.
    """
    return _blocks(g_q, _checked_texts(g_q, g_t), block)


def top_k(scores_QN: ArrayLike, k: int) -> Top:
    """The best `k` of each row without sorting the row.

    Args:
        scores_QN: float32 (others are rounded to it), higher is better.

    Raises:
        DataError: fewer than `k` candidates, or a score that is NaN.
    """
    scores = np.asarray(scores_QN, dtype=np.float32)
    check_k(k, scores.shape[1])
    if np.isnan(scores).any():
        raise DataError("a ranking score is NaN; check the embeddings or the matching scores it comes from")
    least_Q1 = np.partition(scores, -k, axis=1)[:, -k, None]
    query, candidate = np.nonzero(scores >= least_Q1)
    return _Entries(query, candidate, scores[query, candidate]).best(k).table(k)


def reorder(top: Top, scores_QK: ArrayLike) -> Top:
    """Re-rank the best K by another score (ITM); ties keep their order.

    Args:
        scores_QK: higher is better; one for each of `top.indices_QK`.

    Raises:
        DataError: another shape, or a score that is NaN.
    """
    scores = np.asarray(scores_QK, dtype=np.float32)
    if scores.shape != top.indices_QK.shape:
        raise DataError(f"re-ranking scores have shape {scores.shape}, the ranking {top.indices_QK.shape}")
    if np.isnan(scores).any():
        raise DataError("a re-ranking score is NaN; check the matching head's output")
    order = np.argsort(-scores, axis=1, kind="stable")
    return Top(np.take_along_axis(top.indices_QK, order, 1), np.take_along_axis(scores, order, 1))


@dataclass(frozen=True)
class _Entries:
    """Scored (query, candidate) pairs in flat arrays; a query may have any number of them."""

    query: Ints
    candidate: Ints
    score: Floats

    @staticmethod
    def none() -> _Entries:
        return _Entries(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    def joined(self, other: _Entries) -> _Entries:
        return _Entries(
            np.concatenate([self.query, other.query]),
            np.concatenate([self.candidate, other.candidate]),
            np.concatenate([self.score, other.score]),
        )

    def best(self, k: int) -> _Entries:
        """At most `k` of each query, sorted by query, then best first, then candidate."""
        order = np.lexsort((self.candidate, -self.score, self.query))
        query = self.query[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        best = order[rank < k]
        return _Entries(self.query[best], self.candidate[best], self.score[best])

    def table(self, k: int) -> Top:
        """As Q x K, once every query has `k`."""
        return Top(self.candidate.reshape(-1, k), self.score.reshape(-1, k))


def check_k(k: int, candidates: int) -> None:
    """Raises DataError if `candidates` have no `k` best."""
    if k < 1:
        raise DataError(f"K must be 1 or more, not {k}")
    if k > candidates:
        raise DataError(f"cannot rank the best {k}: there are only {candidates:,} candidates")


def _checked_texts(g_q: Any, g_t: ArrayLike) -> Floats:
    texts = np.asarray(g_t, dtype=np.float32)
    if len(g_q.shape) != 3 or texts.ndim != 2 or g_q.shape[2] != texts.shape[1]:
        raise DataError(
            f"image embeddings must be [images, queries, width] and text embeddings [texts, width] of one "
            f"width, not {tuple(g_q.shape)} and {texts.shape}"
        )
    if not len(g_q) or not len(texts):
        raise DataError(f"nothing to rank: {len(g_q):,} images and {len(texts):,} texts")
    _check_norms(texts, "text", np.arange(len(texts)))
    return texts


def _check_norms(rows: Floats, kind: str, index: Ints) -> None:
    norm = np.sqrt(np.einsum("...e,...e->...", rows, rows)).reshape(len(rows), -1)
    wrong = np.flatnonzero(~(np.abs(norm - 1) <= NORM_SLACK).all(axis=1))  # NaN is wrong too
    if len(wrong):
        raise DataError(
            f"{kind} embedding {index[wrong[0]]} has norm {norm[wrong[0]].max():g}, not 1; normalise all "
            f"embeddings ({len(wrong):,} are wrong here)"
        )


def _first_equal(rows: Any, block: int) -> Ints:
    """[N]: index of the first row that is equal bit by bit; `block` rows are in memory at a time."""
    seen: dict[bytes, int] = {}
    first = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), block):
        for i, row in enumerate(np.asarray(rows[start : start + block]), start):
            first[i] = seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), i)
    return first


def _blocks(g_q: Any, texts: Floats, block: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield (image indices [b], their scores [b, N_t]), each image once; equal ones are computed once.

    Blocks run on threads of our own, each with BLAS held to one: BLAS threads wait for each other after every
    tile, which costs a factor of ten on a busy machine, and let last bits depend on their number.
    """
    distinct_T, copy_of_T = np.unique(_first_equal(texts, block), return_inverse=True)
    texts = texts[distinct_T] if len(distinct_T) < len(texts) else texts
    distinct_I, copy_of_I = np.unique(_first_equal(g_q, block), return_inverse=True)
    order = np.argsort(copy_of_I, kind="stable")  # equal images next to each other
    ends = np.searchsorted(copy_of_I[order], np.arange(len(distinct_I)), side="right")
    block = max(1, min(block, BLOCK_SCORES // len(copy_of_T)))

    def one(start: int) -> tuple[Ints, Floats]:
        block_I = distinct_I[start : start + block]
        # HDF5 reads a slice far faster than a list of rows.
        is_slice = block_I[-1] - block_I[0] + 1 == len(block_I)
        images = np.asarray(g_q[block_I[0] : block_I[-1] + 1] if is_slice else g_q[block_I], np.float32)
        _check_norms(images, "image", block_I)
        scores = _tile_scores(images, texts)
        if len(distinct_T) < len(copy_of_T):
            scores = scores[:, copy_of_T]
        rows = order[ends[start - 1] if start else 0 : ends[start + len(block_I) - 1]]
        return rows, scores[copy_of_I[rows] - start] if len(rows) > len(block_I) else scores

    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    threads = min(max(blas, default=1), MOST_THREADS)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[tuple[Ints, Floats]]] = deque()
        for start in range(0, len(distinct_I), block):
            ahead.append(pool.submit(one, start))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _tile_scores(images: Floats, texts: Floats) -> Floats:
    """[b, L_q, E] and [N_t, E] -> [b, N_t]: one matrix product per query, the maximum kept in place."""
    out = np.empty((len(images), len(texts)), dtype=np.float32)
    for start in range(0, len(texts), TEXT_TILE):
        tile = texts[start : start + TEXT_TILE].T
        best = images[:, 0] @ tile
        product = np.empty_like(best)
        for query in range(1, images.shape[1]):
            np.matmul(images[:, query], tile, out=product)
            np.maximum(best, product, out=best)
        out[:, start : start + TEXT_TILE] = best
    return out
