"""Checks on records and their division into shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunifier_cli.data.contract import Drop, FileImage, Record
from medunifier_cli.errors import DataError
from medunifier_cli.prepare.dataset_scan import Chunk, DatasetScan


def record(i: int, split: str = "train", **changes: Any) -> Record:
    fields = {"key": f"k{i}", "subject": f"p{i}", "study": f"s{i}", "source": f"images/{i}.png"} | changes
    return Record(image=FileImage(Path(f"{i}.png")), split=split, **fields)


def cut(
    items: list[Record | Drop], size: int = 4, shared: bool = False
) -> tuple[list[Chunk], DatasetScan, list[Drop]]:
    dropped: list[Drop] = []
    scan = DatasetScan(size, shared, dropped.append)
    return list(scan.chunks(iter(items))), scan, dropped


def test_shards_are_full_in_the_order_of_the_plan() -> None:
    items: list[Record | Drop] = [record(i, "train" if i % 3 else "test") for i in range(15)]
    items.insert(3, Drop("filtered: lateral view", "x.png"))
    chunks, scan, dropped = cut(items)
    names = {chunk.name: [r.key for r in chunk.records] for chunk in chunks}
    assert names == {
        "train-000000": ["k1", "k2", "k4", "k5"],
        "train-000001": ["k7", "k8", "k10", "k11"],
        "test-000000": ["k0", "k3", "k6", "k9"],
        "test-000001": ["k12"],
        "train-000002": ["k13", "k14"],
    }
    assert sorted(chunk.ordinal for chunk in chunks) == list(range(5))
    assert (scan.drops, dropped) == ({"filtered: lateral view": 1}, [items[3]])


def test_a_fingerprint_depends_on_everything_in_a_record() -> None:
    plain = cut([record(1)])[0][0].fingerprint
    assert cut([record(1)])[0][0].fingerprint == plain
    others: list[dict[str, Any]] = [
        {"view": "PA"}, {"labels": {"A": None}}, {"labels": {"A": np.float32(1)}}, {"text_kind": "notes"},
        {"sections": {"findings": "x"}}, {"facts": {"a": [1]}},
    ]  # fmt: skip
    for changes in others:
        assert cut([record(1, **changes)])[0][0].fingerprint != plain


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "ä", "a b", "x" * 91])
def test_keys_that_a_tar_could_not_hold_are_refused(key: str) -> None:
    with pytest.raises(DataError, match=r"images/1\.png: key .* must be 1 to 90 letters"):
        cut([record(1, key=key)])


def test_a_repeated_key_is_refused() -> None:
    with pytest.raises(DataError, match=r"images/2\.png: key 'k1' appears twice"):
        cut([record(1), record(2, key="k1")])


def test_a_patient_on_two_sides_is_refused() -> None:
    items: list[Record | Drop] = [record(1), record(2, subject="p1"), record(3, "test", subject="p1")]
    with pytest.raises(DataError, match=r"images/3\.png: subject 'p1' is in 'test' and in 'train'"):
        cut(items)


def test_the_error_counts_all_patients_on_two_sides() -> None:
    items: list[Record | Drop] = [record(i, subject=f"p{i % 3}") for i in range(6)]
    items += [record(i, "test", subject=f"p{i % 4}") for i in range(6, 12)]
    with pytest.raises(DataError, match=r"inflates every score \(3 such patients\)"):
        cut(items)
    with pytest.raises(DataError, match=r"subject 'p2' is in 'test' .* \(1 such patient\)"):
        cut(items[:7])


def test_a_split_without_a_name_in_the_plugin_is_refused() -> None:
    def scan(split: str, *splits: str) -> int:
        scan = DatasetScan(4, False, lambda drop: None, splits)
        return len(list(scan.chunks(iter([record(1), record(2, split)]))))

    with pytest.raises(DataError, match=r"images/2\.png: split 'val' is none of train, valid, test"):
        scan("val", "train", "valid", "test")
    assert scan("val", "train", "val") == scan("val") == 2


def test_a_class_that_no_label_spells_alike_is_refused() -> None:
    def scan(*labels: dict[str, float | None]) -> int:
        scan = DatasetScan(4, False, lambda drop: None, (), ("Edema", "Effusion"))
        return len(list(scan.chunks(record(i, labels=one) for i, one in enumerate(labels))))

    with pytest.raises(DataError, match=r"labels effusion: none of the classes; and no .* label Effusion"):
        scan({"Edema": 1.0, "effusion": 0.0}, {"Edema": None, "effusion": None})
    # labels beside the classes; each class in one record at least; no labels at all
    assert scan({"Edema": 1.0, "Fracture": 0.0}, {"Effusion": None, "Fracture": None}) == 1
    assert scan({"Edema": 1.0}) == scan({}) == 1


def test_shared_patients_are_counted_once_where_they_are_allowed() -> None:
    splits = ["train", "train", "test", "valid", "test", "train"]
    items: list[Record | Drop] = [record(i, s, subject=f"p{i % 2}") for i, s in enumerate(splits)]
    assert cut(items, shared=True)[1].shared == 2
    assert cut(items[:2], shared=True)[1].shared == 0


def test_a_split_that_makes_no_file_name_is_refused() -> None:
    with pytest.raises(DataError, match="split 'a/b'"):
        cut([record(1, "a/b")])


def test_any_number_of_splits_is_told_apart() -> None:
    """One bit per split, in integers of any length: folds of a cross-validation are splits too."""
    items: list[Record | Drop] = [record(i, f"fold{i}") for i in range(70)]
    assert len(cut(items)[0]) == 70
    with pytest.raises(DataError, match="subject 'p68' is in 'fold69' and in 'fold68'"):
        cut([*items, record(70, "fold69", subject="p68")])


def test_a_scan_holds_no_more_than_the_shards_under_way() -> None:
    """The plan is a stream: shard by shard, not all at once."""
    taken = 0

    def stream() -> Iterator[Record]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield record(i)

    chunks = DatasetScan(10, False, lambda drop: None).chunks(stream())
    next(chunks)
    assert taken == 10


def test_a_synthetic_image_belongs_into_train_alone() -> None:
    chunks, _, _ = cut([record(1, origin="synthetic:a@1"), record(2)])
    assert [len(chunk.records) for chunk in chunks] == [2]
    for split in ("valid", "test", "5x200"):
        with pytest.raises(DataError, match=rf"2\.png: a synthetic image \('synthetic:a@1'\) in '{split}'"):
            cut([record(1), record(2, split, origin="synthetic:a@1")])


BEFORE = "d0e7c552de848ba37eb97e41ad119e0a3d1069ad0f9555657979d43b472a98e1"
"""Fingerprint of `record(1)` as it was before records had an origin."""


def test_an_origin_makes_another_shard_and_none_leaves_it_as_it_was() -> None:
    plain, marked = (cut([record(1, origin=origin)])[0][0].fingerprint for origin in ("", "synthetic:a@1"))
    assert marked != plain
    # finished shards of before are not made again
    assert plain == BEFORE
