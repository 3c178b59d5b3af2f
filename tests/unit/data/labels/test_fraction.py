"""Fractions of a train split: stratified, nested, seeded; the shards' own lists where they have them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from medunifier_cli.data.labels.fraction import select, stratified_rows
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from tests.run.conftest import write_split

N = 1000
KEYS = [f"k{i:04d}" for i in range(N)]
LABELS = np.random.default_rng(5).choice(4, N, p=[0.6, 0.25, 0.12, 0.03])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.333, 0.5, 1.0])
def test_each_class_keeps_its_share_to_within_one(fraction: float) -> None:
    drawn = stratified_rows(LABELS, KEYS, fraction, seed=0)
    assert len(drawn) == len(set(drawn.tolist())) == int(np.ceil(fraction * N))
    for label in range(4):
        wanted = fraction * np.bincount(LABELS)[label]
        assert abs(int((LABELS[drawn] == label).sum()) - wanted) <= 1


def test_smaller_draws_are_part_of_larger_ones_and_other_seeds_differ() -> None:
    draws = [
        set(stratified_rows(LABELS, KEYS, fraction, seed=3).tolist())
        for fraction in (0.01, 0.02, 0.1, 0.37, 0.9)
    ]
    for small, large in itertools.pairwise(draws):
        assert small < large
    assert draws[2] != set(stratified_rows(LABELS, KEYS, 0.1, seed=4).tolist())


def test_a_draw_follows_the_keys_and_not_their_order() -> None:
    order = np.random.default_rng(0).permutation(N)
    keys = [KEYS[i] for i in order]
    assert {keys[i] for i in stratified_rows(LABELS[order], keys, 0.1, 0)} == {
        KEYS[i] for i in stratified_rows(LABELS, KEYS, 0.1, 0)
    }


def test_labels_of_several_classes_are_stratified_by_their_whole_row() -> None:
    table = np.random.default_rng(1).integers(0, 2, (400, 2)).astype(np.float32)
    table[:40, 1] = np.nan
    drawn = stratified_rows(table, [f"s{i}" for i in range(400)], 0.25, 0)
    for row in ((0, 0), (0, 1), (1, 0), (1, 1)):
        all_of = int((table == row).all(axis=1).sum())
        assert abs(int((table[drawn] == row).all(axis=1).sum()) - all_of / 4) <= 1
    assert abs(int(np.isnan(table[drawn, 1]).sum()) - 10) <= 2


def test_manifests_own_list_wins_and_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 20, 0)
    shards = Shards.open(tmp_path, "train")
    target = np.arange(20) % 2
    target[0] = -1
    drawn = select(shards, target, 0.1, seed=9)
    assert drawn.seed == 9
    assert len(drawn.rows) == 2
    listed = ["train-0000", "train-0003", "train-0017"]
    (tmp_path / "manifest.json").write_text(
        json.dumps({"subsets": {"train-0.1": {"rule": "by hand", "seed": 7, "keys": listed}}})
    )
    found = select(shards, target, 0.1, seed=9)
    assert shards.keys(found.rows) == listed[1:]  # the first one has no label
    assert (found.rule, found.seed) == ("train-0.1 of the manifest: by hand", 7)
    assert len(select(shards, target, 0.2, seed=9).rows) == 4  # no list of that share: drawn
    assert len(select(shards, target, 1.0, seed=9).rows) == 19


def test_no_label_at_all(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 4, 0)
    with pytest.raises(DataError, match="no sample of split 'train' has a label"):
        select(Shards.open(tmp_path, "train"), np.full(4, -1), 1.0, 0)
