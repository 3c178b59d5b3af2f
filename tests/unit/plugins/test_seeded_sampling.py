"""Seeded sampling: shares, strata, nested samples, and id lists given by the user."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from medunifier_plugins.raw.sampling import (
    PART_OPTIONS,
    hash_share,
    listed_ids,
    shares,
    stratified,
    train_parts,
)

from medunifier_cli.data.contract import DataError

OPTIONS = {name: option.default for name, option in PART_OPTIONS.items()} | {"seed": 7}


def test_shares_are_within_one_of_the_exact_ones_and_leave_no_group_out() -> None:
    rng = random.Random(0)
    for _ in range(2_000):
        sizes = [rng.choice([0, 1, 2, 5, 40, 900]) for _ in range(rng.randint(1, 6))]
        groups = sum(1 for size in sizes if size)
        if not groups:
            continue
        total = rng.randint(1, sum(sizes))
        parts = shares(sizes, total)
        assert sum(parts) == total
        for size, part in zip(sizes, parts, strict=True):
            assert (min(1, size) if total >= groups else 0) <= part <= size
            exact = total * size / sum(sizes)
            # A group that is lifted to its one item costs the others, but no more than there are groups.
            assert abs(part - exact) < 1 + (
                groups if min(total * s / sum(sizes) for s in sizes if s) < 1 else 0
            )


def test_strata_keep_their_shares_and_small_samples_are_part_of_large_ones() -> None:
    strata = ["a"] * 700 + ["b"] * 250 + ["c"] * 50
    random.Random(1).shuffle(strata)
    small, large = (set(stratified(strata, total, seed=3).tolist()) for total in (100, 400))
    assert Counter(strata[place] for place in small) == {"a": 70, "b": 25, "c": 5}
    assert Counter(strata[place] for place in large) == {"a": 280, "b": 100, "c": 20}
    assert small < large
    assert small != set(stratified(strata, 100, seed=4).tolist())


def test_one_and_ten_percent_of_train_are_rounded_up() -> None:
    strata = {f"k{i}": i % 9 == 0 for i in range(18_678)}  # RSNA's train split: 187 and 1,868 images
    parts = train_parts(strata, OPTIONS)
    assert {name: len(part.keys) for name, part in parts.items()} == {"train-0.01": 187, "train-0.1": 1_868}
    assert set(parts["train-0.01"].keys) < set(parts["train-0.1"].keys)
    assert parts["train-0.1"].seed == 7
    assert abs(sum(strata[key] for key in parts["train-0.1"].keys) - 1_868 / 9) < 1


def test_a_miniature_has_no_share_that_cannot_hold_each_class() -> None:
    assert set(train_parts({f"k{i}": i % 2 for i in range(20)}, OPTIONS)) == {"train-0.1"}


def test_a_list_replaces_the_sample_by_key_or_by_other_name(tmp_path: Path) -> None:
    listed = tmp_path / "ten.csv"
    listed.write_text("ImageId,x\n1.2.3,0\nk5,0\n", encoding="utf-8")
    options = OPTIONS | {"ids_10_percent": str(listed)}
    part = train_parts({f"k{i}": 0 for i in range(100)}, options, {"1.2.3": "k4"})["train-0.1"]
    assert (list(part.keys), part.seed, part.rule) == (["k4", "k5"], None, "given as ten.csv")
    listed.write_text("ImageId\nk999\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ten\.csv: 1 of 1 ids are not in the train split, first 'k999'"):
        train_parts({f"k{i}": 0 for i in range(100)}, options)


def test_lists_as_text_json_and_csv(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\r\n\r\ntwo\none\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(["one", "two"]), encoding="utf-8")
    manifest = {"samples": 9, "subsets": {"mine": {"seed": 0, "keys": ["one", "two"]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "a.csv").write_text("n, key\n1,one\n2,two\n", encoding="utf-8")
    assert [listed_ids(path, "mine") for path in sorted(tmp_path.iterdir())] == [["one", "two"]] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", "\n\n", "lists no ids"),
        ("a.csv", "n,m\n1,2\n", "none of the columns key, patientId"),
        ("a.json", '{"a": 1}', "; a list of ids is expected, or a manifest"),
        ("c.json", '{"subsets": {"other": {}}}', "has no subset mine; it has: other"),
        ("b.json", "[", "is no JSON .*; a list of ids"),
    ],
)
def test_unusable_lists_are_errors(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        listed_ids(tmp_path / name, "mine")


def test_hash_shares_are_even_and_depend_on_the_seed() -> None:
    values = [hash_share(f"CXR{i}", 0) for i in range(4_000)]
    assert abs(sum(value < 0.8 for value in values) / 4_000 - 0.8) < 0.03
    assert [hash_share(f"CXR{i}", 1) for i in range(5)] != values[:5]
