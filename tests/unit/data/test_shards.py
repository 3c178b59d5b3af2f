"""Reading shards: against `tarfile` and the `webdataset` library, and with damage done to them."""

import json
import multiprocessing
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import webdataset

from medunifier_cli.data.disk.manifest import read_manifest
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from tests.hand_made import HandMade, sample, write_shard, write_split


def test_reads_what_was_written_in_order(tmp_path: Path) -> None:
    shards = Shards.open(write_split(tmp_path, "train", 25, 10), "train")
    assert len(shards) == 25
    for i in (24, 0, 10, 9):
        key, image, meta = sample(i)
        assert shards.read(i) == (image, meta)
        assert shards.key(i) == key
        assert shards.label_dict(shards.index["labels"][i]) == meta["labels"]


def test_reads_what_the_webdataset_library_wrote(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        for i in range(3):
            key, image, meta = sample(i)
            writer.write({"__key__": f"a.b/{key}", "png": image, "json": meta})
    shards = Shards.open(tmp_path, "train")
    assert [shards.read(i) for i in range(3)] == [sample(i)[1:] for i in range(3)]
    assert shards.key(2) == "a.b/s00002"


def test_blank_labels_stay_blank(tmp_path: Path) -> None:
    rows = [sample(0, labels={"A": 0.0, "B": None}), sample(1, labels={"B": -1.0})]
    write_shard(tmp_path / "test-000000.tar", rows)
    shards = Shards.open(tmp_path, "test")
    assert shards.label_dict(shards.index["labels"][0]) == {"A": 0.0, "B": None}
    assert shards.label_dict(shards.index["labels"][1]) == {"A": None, "B": -1.0}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_classes_are_asked_once_per_distinct_row_of_labels(tmp_path: Path, n: int) -> None:
    asked = []

    class Counting(HandMade):
        def class_of(self, labels: Mapping[str, float | None]) -> int | None:
            asked.append(dict(labels))
            return super().class_of(labels)

    shards = Shards.open(write_split(tmp_path, "train", n, 3), "train")
    assert shards.class_indices(Counting()).tolist() == [0 if i % 2 else 1 for i in range(n)]
    assert len(asked) == min(n, 2)


def test_no_labels_at_all(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-000000.tar", [sample(0, labels={})])
    shards = Shards.open(tmp_path, "test")
    assert shards.label_dict(shards.index["labels"][0]) == {}


def test_pickles_and_is_shared_by_processes(tmp_path: Path) -> None:
    shards = Shards.open(write_split(tmp_path, "train", 20, 6), "train")
    first = shards.image(0)
    assert pickle.loads(pickle.dumps(shards)).image(0) == first
    with multiprocessing.get_context("fork").Pool(3) as pool:
        images = pool.map(shards.image, list(range(20)) * 5)
    assert images == [sample(i)[1] for i in range(20)] * 5


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medunifier_cli.data.shards.OPEN_SHARDS", 3)
    shards = Shards.open(write_split(tmp_path, "train", 12, 1), "train")
    before = len(os.listdir("/proc/self/fd"))
    for i in np.random.default_rng(0).integers(0, 12, 60).tolist():
        assert shards.image(i) == sample(i)[1]
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_missing_split_lists_the_splits_there_are(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 2, 2)
    write_split(tmp_path, "held-out", 2, 2)
    with pytest.raises(DataError, match="no split 'valid'; available: held-out, train"):
        Shards.open(tmp_path, "valid")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder of shards; run `mu prepare` first"):
        Shards.open(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="no such folder of shards; run `mu prepare rsna` first"):
        Shards.open(tmp_path / "shards" / "rsna", "train")


def test_a_misspelt_folder_is_compared_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"clinc: no such folder of shards; did you mean `clinic`\?"):
        Shards.open(tmp_path / "clinc", "train")


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.1])
def test_a_shard_cut_in_half_is_named(tmp_path: Path, keep: float) -> None:
    path = write_split(tmp_path, "train", 40, 40) / "train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"train-000000\.tar: not a complete tar"):
        Shards.open(tmp_path, "train")


def test_a_shard_cut_between_two_members_is_named(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train", 8, 8) / "train-000000.tar"
    shards = Shards.open(tmp_path, "train")
    end = int(shards.index[4]["image_offset"]) - 512
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match=r"train-000000\.tar: not a complete tar"):
        Shards.open(tmp_path, "train")


def test_a_shard_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train", 8, 8) / "train-000000.tar"
    shards = Shards.open(tmp_path, "train")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"train-000000\.tar: ends before byte"):
        shards.read(7)


def test_a_sample_without_metadata_is_named(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        writer.write({"__key__": "lonely", "png": sample(0)[1]})
    with pytest.raises(DataError, match=r"sample 'lonely' lacks its \.json"):
        Shards.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("head", "advice"),
    [
        ({}, "run `mu prepare` again"),
        ({"dataset": "rsna"}, "run `mu prepare rsna` again"),
        (
            {"dataset": "clinic", "plugin": "table"},
            "run `mu prepare table --name clinic` again, with the same --raw and -o",
        ),
    ],
)
def test_the_command_that_prepares_shards_again(tmp_path: Path, head: dict[str, str], advice: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**head, "splits": 3}))
    with pytest.raises(DataError, match=f"; {advice}$"):
        read_manifest(tmp_path)
