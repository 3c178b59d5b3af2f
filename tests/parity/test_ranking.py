"""Retrieval against brute force, with ties, and against values worked out by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from medunifier_cli.errors import DataError
from medunifier_cli.scores import ranking
from medunifier_cli.scores import search as search_module
from medunifier_cli.scores.ranking import ranking_scores, retrieval
from medunifier_cli.scores.search import Top, reorder, search, similarity, top_k
from tests.reference.slow_ranking import slow_ranking, slow_scores, slow_similarity

KS = (1, 3, 5, 10)


def embeddings(kind: str, pairs: int, queries: int = 4) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`random`: no ties. `coarse`: four entries of +-1/2, so that products are exact and ties are many."""
    rng = np.random.default_rng(pairs)

    def draw(*shape: int) -> NDArray[np.float32]:
        if kind == "random":
            x = rng.standard_normal((*shape, 16))
            return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
        x = np.zeros((*shape, 16), dtype=np.float32)
        where = np.argsort(rng.random(x.shape), axis=-1)[..., :4]
        np.put_along_axis(x, where, rng.choice(np.float32([-0.5, 0.5]), where.shape), axis=-1)
        return x

    return draw(pairs, queries), draw(pairs)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("kind", ["random", "coarse"])
def test_both_directions_equal_brute_force(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "TEXT_TILE", 13)
    g_q, g_t = embeddings(kind, 41)
    g_q[[5, 30, 31]], g_t[[2, 17, 40]] = g_q[4], g_t[39]
    labels = [int(x) for x in np.random.default_rng(1).integers(0, 4, 41)]
    slow = slow_similarity(g_q, g_t)
    if kind == "coarse":
        assert len(np.unique(slow)) < 15

    np.testing.assert_allclose(similarity(g_q, g_t, block), slow, atol=1e-6)
    got = retrieval(g_q, g_t, labels, KS, block=block)
    for way, table in (("image_to_text", slow), ("text_to_image", slow.T)):
        ranking = [slow_ranking(row)[:10] for row in table]
        np.testing.assert_array_equal(got.top[way].indices_QK, ranking)
        np.testing.assert_allclose(
            got.top[way].scores_QK, np.take_along_axis(table, np.array(ranking), 1), atol=1e-6
        )
        for k in KS:
            for name, values in slow_scores(table, labels, k).items():
                np.testing.assert_allclose(got.per_query[way][name], values, atol=1e-12)
                assert got.per_query[way][name].mean() == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [([0, 1, 0, 0, 1], 0.45), ([1, 0, 0, 0, 0], 1.0), ([0, 0, 0, 0, 1], 0.2), ([0, 0, 0, 0, 0], 0.0)],
)
def test_paper_protocol_on_worked_examples(relevance: list[int], expected: float) -> None:
    got = ranking_scores([range(5)], [1], relevance, ks=[5])
    assert got["map@5"] == pytest.approx(expected)


def test_standard_map_counts_what_there_is_to_find() -> None:
    # three relevant, one found at rank 2 of 2: (1/2) / min(2, 3); of the first rank alone: 0 / min(1, 3)
    got = ranking_scores([[3, 0]], [1], [1, 1, 1, 0], ks=[1, 2])
    assert (got["standard_map@2"], got["standard_map@1"], got["map@2"]) == (0.25, 0.0, 0.5)


def test_chance_level_of_five_balanced_classes() -> None:
    """0.20, 0.354, 0.349 at K = 1, 5, 10: what a random ranking of 5x200 reaches in the paper's protocol."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 200)
    order = np.argsort(rng.random((4000, 1000)), axis=1)[:, :10]
    got = ranking_scores(
        order, np.tile(labels, 4), labels, query_pairs=np.zeros(4000), candidate_pairs=np.ones(1000)
    )
    means = [got[f"map@{k}"].mean() for k in (1, 5, 10)]
    np.testing.assert_allclose(means, [0.20, 0.354, 0.349], atol=0.015)


def test_the_same_report_twice_is_a_tie_wherever_it_lies() -> None:
    """A matrix product alone gives equal columns different last bits; one report would beat its copy."""
    rng = np.random.default_rng(0)
    g_q = rng.standard_normal((300, 8, 256)).astype(np.float32)
    g_t = rng.standard_normal((1100, 256)).astype(np.float32)
    g_q /= np.linalg.norm(g_q, axis=-1, keepdims=True)
    g_t /= np.linalg.norm(g_t, axis=-1, keepdims=True)
    g_t[[1, 500, 1023, 1024, 1099]] = g_t[0]
    g_q[[1, 200, 299]] = g_q[0]
    scores = similarity(g_q, g_t, block=64)
    assert (scores[:, [1, 500, 1023, 1024, 1099]] == scores[:, [0]]).all()
    assert (scores[[1, 200, 299]] == scores[0]).all()
    to_text, to_image = search(g_q, g_t, k=300, block=64)
    np.testing.assert_array_equal(to_text.indices_QK, np.argsort(-scores, axis=1, kind="stable")[:, :300])
    np.testing.assert_array_equal(to_image.indices_QK, np.argsort(-scores.T, axis=1, kind="stable"))


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    g_q = rng.standard_normal((500, 4, 256)).astype(np.float32)  # narrower ones come out equal anyway
    g_q /= np.linalg.norm(g_q, axis=-1, keepdims=True)
    g_t = g_q[:, 0].copy()
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            found.append(similarity(g_q, g_t, block=50))
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_pair_ids_make_every_copy_of_a_report_right() -> None:
    ranking = [[1, 0], [0, 2], [2, 1]]
    own = ranking_scores(ranking, [0, 1, 2], [0, 1, 2], ks=[1])
    same = ranking_scores(
        ranking, [0, 1, 2], [0, 1, 2], [1], query_pairs=[7, 7, 8], candidate_pairs=[7, 7, 8]
    )
    assert (own["recall@1"].mean(), same["recall@1"].mean()) == (pytest.approx(1 / 3), 1.0)


def test_top_k_takes_the_lowest_indices_of_equal_scores() -> None:
    found = top_k([[0.5, 0.0, 0.5, -0.0, 0.5], [1, 1, 1, 1, 1], [-np.inf, 2, 1, 3, 2]], 3)
    np.testing.assert_array_equal(found.indices_QK, [[0, 2, 4], [0, 1, 2], [3, 1, 4]])


def test_reordering_keeps_the_first_ranking_among_equals() -> None:
    top = Top(np.array([[4, 2, 9, 7]]), np.float32([[0.9, 0.8, 0.7, 0.6]]))
    again = reorder(top, [[0.1, 0.5, 0.1, 0.9]])
    np.testing.assert_array_equal(again.indices_QK, [[7, 2, 4, 9]])


def test_embeddings_may_stay_on_disk(tmp_path: Path) -> None:
    g_q, g_t = embeddings("random", 23)
    g_q[9] = g_q[3]
    with h5py.File(tmp_path / "e.h5", "w") as file:
        stored = file.create_dataset("g_q", data=g_q)
        found, memory = search(stored, g_t, 5, block=4), search(g_q, g_t, 5)
    for a, b in zip(found, memory, strict=True):
        np.testing.assert_array_equal(a.indices_QK, b.indices_QK)


def test_bad_input_is_said_in_one_line() -> None:
    g_q, g_t = embeddings("random", 12)
    nan = g_q.copy()
    nan[7, 2, 3] = np.nan
    labels = [0, 1] * 6
    cases = [
        (lambda: retrieval(nan, g_t, labels), "image embedding 7 has norm nan"),
        (lambda: retrieval(g_q, 2 * g_t, labels), "text embedding 0 has norm 2"),
        (lambda: retrieval(g_q, g_t, [3] * 12), "one class"),
        (lambda: retrieval(g_q, g_t[:11], labels), "12 images, 11 texts and 12 labels"),
        (lambda: retrieval(g_q[:0], g_t[:0], []), "0 images"),
        (lambda: retrieval(g_q, g_t, labels, ks=[20]), "only 12 candidates"),
        (lambda: retrieval(g_q, g_t, labels, ks=[0, 5]), "K must be 1 or more"),
        (lambda: similarity(g_q, g_t[:, :8]), "of one width"),
        (lambda: top_k([[0.0, np.nan]], 1), "NaN"),
        (lambda: ranking_scores(np.empty((0, 5)), [], labels), "no query"),
    ]
    for call, words in cases:
        with pytest.raises(DataError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_chance_level_is_that_of_one_whole_permutation_per_query(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    labels, pairs = random.integers(0, 3, 60), random.integers(0, 40, 60)
    shuffled = np.random.default_rng(2)
    whole = np.stack([shuffled.permutation(60) for _ in range(60)])
    expected = {
        name: values.mean()
        for name, values in ranking_scores(whole, labels, labels, (1, 5), pairs, pairs).items()
    }
    assert ranking.chance_scores(labels, pairs, (1, 5), seed=2) == pytest.approx(expected, rel=1e-12)
    # fewer queries than pairs: the level stays near what the classes give
    monkeypatch.setattr(ranking, "CHANCE_QUERIES", 25)
    some = ranking.chance_scores(labels, pairs, (5,), seed=2)
    assert some["precision@5"] == pytest.approx(1 / 3, abs=0.1)


def test_chance_level_keeps_no_whole_permutation() -> None:
    labels = np.arange(4000) % 5
    tracemalloc.start()
    ranking.chance_scores(labels, np.arange(4000), (1, 5, 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 4000 * 10 * 8, peak  # all permutations are 4,000 x 4,000 x 8 bytes


def test_blocks_shrink_where_there_are_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    g_q, g_t = random.normal(size=(37, 3, 8)), random.normal(size=(50, 8))
    g_q /= np.linalg.norm(g_q, axis=2, keepdims=True)
    g_t /= np.linalg.norm(g_t, axis=1, keepdims=True)
    expected = search_module.search(g_q, g_t, 5)
    monkeypatch.setattr(search_module, "BLOCK_SCORES", 200)
    sizes = [len(rows) for rows, _ in search_module.score_blocks(g_q, g_t)]
    assert max(sizes) == 4
    for found, other in zip(search_module.search(g_q, g_t, 5), expected, strict=True):
        assert found.indices_QK.tolist() == other.indices_QK.tolist()
        assert found.scores_QK == pytest.approx(other.scores_QK, abs=1e-6)
