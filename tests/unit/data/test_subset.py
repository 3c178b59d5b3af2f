"""Parts of a folder of shards: splits, drawn subsets over several splits, lists of keys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from medunifier_plugins.rsna import Rsna

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.subset import open_keys, open_part, parts_of, read_keys
from medunifier_cli.errors import DataError
from tests.hand_made import write_split
from tests.miniatures.prepared import Prepared, prepare
from tests.unit.plugins.test_rsna import write_raw


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """60 patients in three splits, a zero-shot subset of 10 positives and 10 negatives over all of them."""
    folder = tmp_path_factory.mktemp("rsna")
    write_raw(folder / "raw")
    return prepare("rsna", folder / "raw", folder / "shards", "per_class=10")


def test_a_drawn_subset_opens_as_one_split(rsna: Prepared) -> None:
    keys = rsna.manifest["subsets"]["zeroshot"]["keys"]
    assert len({rsna.samples[key]["split"] for key in keys}) > 1, "the test needs one over several splits"
    shards = open_part(rsna.folder, "zeroshot")
    assert [shards.key(i) for i in range(len(shards))] == keys
    for i, key in enumerate(keys):
        image, meta = shards.read(i)
        assert image == rsna.pictures[key]
        assert meta["labels"] == rsna.samples[key]["labels"]
        assert shards.label_dict(shards.index["labels"][i]) == rsna.samples[key]["labels"]
    found = shards.class_indices(Rsna())
    wanted = [0 if rsna.samples[key]["labels"]["Pneumonia"] else 1 for key in keys]
    assert found.tolist() == wanted
    assert sorted(np.bincount(found).tolist()) == [10, 10]


def test_a_subset_of_train_and_a_split_by_its_own_name(rsna: Prepared) -> None:
    splits, subsets = parts_of(rsna.folder)
    assert splits == ["test", "train", "valid"]
    assert "train-0.1" in subsets
    part = open_part(rsna.folder, "train-0.1")
    assert {rsna.samples[part.key(i)]["split"] for i in range(len(part))} == {"train"}
    assert len(open_part(rsna.folder, "test")) == rsna.splits()["test"]


def test_the_same_keys_have_the_same_fingerprint_and_others_another(rsna: Prepared) -> None:
    keys = rsna.manifest["subsets"]["zeroshot"]["keys"]
    whole = open_part(rsna.folder, "zeroshot").fingerprint
    assert open_keys(rsna.folder, "mine", keys).fingerprint == whole
    assert open_keys(rsna.folder, "mine", keys[1:]).fingerprint != whole


def test_a_rejected_image_of_a_subset_is_left_out(rsna: Prepared, tmp_path: Path) -> None:
    for path in rsna.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["subsets"]["zeroshot"]["keys"].append("never-written")
    manifest["subsets"]["zeroshot"]["not_written"] = ["never-written"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(open_part(tmp_path, "zeroshot")) == 20


def test_foreign_shards_open_by_key(tmp_path: Path) -> None:
    write_split(write_split(tmp_path, "train", 9, 4), "test", 3, 4)  # keys of test are those of train
    with pytest.raises(DataError, match="no split 'zeroshot'"):
        open_part(tmp_path, "zeroshot")
    assert isinstance(open_part(tmp_path, "train"), Shards)
    assert open_keys(tmp_path, "two", ["s00008", "s00004"]).keys(np.arange(2)) == ["s00008", "s00004"]


def test_names_and_keys_that_are_not_there(rsna: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split or subset 'zero'.* train-0.01|train-0.1.*zeroshot"):
        open_part(rsna.folder, "zero")
    with pytest.raises(DataError, match="1 of 2 keys of 'mine' are in no split, the first is 'nobody'"):
        open_keys(rsna.folder, "mine", [next(iter(rsna.samples)), "nobody"])
    with pytest.raises(DataError, match="listed twice"):
        open_keys(rsna.folder, "mine", ["a", "a"])
    with pytest.raises(DataError, match="no such folder of shards"):
        open_part(tmp_path / "nowhere", "test")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "k1\n\n k2 \n"), ("a.csv", "number,key\n1,k1\n2,k2\n"), ("a.json", '["k1", "k2"]')],
)
def test_lists_of_keys(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_keys(tmp_path / name) == ["k1", "k2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n", "lists no key"),
        ("a.csv", "id\nk1\n", "no column 'key'"),
        ("a.json", "{}", "expected array, got object; a JSON list of keys"),
        ("a.json", "{", "is no JSON .*; a JSON list of keys"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_keys(tmp_path / name)
