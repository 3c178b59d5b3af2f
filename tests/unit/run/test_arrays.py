"""HDF5 files whose head is right and whose arrays are not: made again, or one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from medunifier_cli.errors import CheckpointError, one_line
from medunifier_cli.run.arrays import Column, cached_columns
from medunifier_cli.run.cache import cached_file
from medunifier_cli.stages.codes import Codes, read_codes, write_codes
from medunifier_cli.stages.features import read_features

COLUMNS = {"image": Column(np.float32, (5, 3)), "keys": Column(np.bytes_, (5,))}


def arrays() -> dict[str, Any]:
    return {"image": np.ones((5, 3), np.float32), "keys": np.array([b"a", b"b", b"c", b"d", b"e"])}


def replace(name: str, **dataset: Any) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]
        if dataset:
            group.create_dataset(name, **dataset)

    return change


@pytest.mark.parametrize(
    "change",
    [
        replace("image"),
        replace("image", data=np.ones((5, 3))),
        replace("image", data=np.ones((4, 3), np.float32)),
        replace("image", data=np.float32(1)),
        replace("keys", data=np.arange(5)),
    ],
)
def test_a_cache_of_other_arrays_is_made_again(
    tmp_path: Path, change: Callable[[h5py.Group], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache.h5"
    cached_columns(path, "these", arrays, COLUMNS)
    assert capsys.readouterr().err == ""
    with h5py.File(path, "r+") as file:
        change(file)
    for _ in range(2):
        found = cached_columns(path, "these", arrays, COLUMNS)
        assert np.array_equal(found["image"], arrays()["image"])
    assert capsys.readouterr().err.count("again") == 1


def features(path: Path, n: int = 6) -> Path:
    values = np.random.default_rng(0).normal(size=(n, 2, 4)).astype(np.float32)

    def fill(file: h5py.File) -> None:
        file.create_dataset("queries", data=values)

    return cached_file(path, "made", fill)


def codes(path: Path) -> Path:
    draw = np.random.default_rng(0)
    columns = Codes(
        draw.integers(0, 16, (6, 2, 2)).astype(np.uint16), draw.integers(0, 16, (6, 4, 4)).astype(np.uint16),
        draw.normal(size=(6, 1, 5)).astype(np.float16), np.arange(6, dtype=np.int16),
        np.array([f"key-{i}".encode() for i in range(6)]),
    )  # fmt: skip
    write_codes(path, {"train": columns}, {})
    return path


FOREIGN: list[dict[str, Any]] = [
    {"data": np.ones((6, 2, 4))},
    {"data": np.ones((6, 8), np.float32)},
    {"data": np.ones((6, 2, 4), np.float32), "compression": "gzip"},
    {"data": np.ones((6, 2, 4), np.float32), "chunks": (1, 2, 4)},
    {"data": np.ones((5, 2, 4), np.float32)},
    {"data": "a text"},
    {"shape": (6, 2, 4), "dtype": "f4", "external": [("/etc/hostname", 0, 192)]},
    {"shape": (1 << 20, 1 << 10, 4), "dtype": "f4"},
    {},
]


@pytest.mark.parametrize("dataset", FOREIGN)
def test_features_that_are_not_ours_are_one_line(tmp_path: Path, dataset: dict[str, Any]) -> None:
    path = features(tmp_path / "queries.h5")
    assert read_features(path, 6).shape == (6, 2, 4)
    with h5py.File(path, "r+") as file:
        replace("queries", **dataset)(file)
    with pytest.raises(CheckpointError, match=r"queries\.h5: damaged; delete it"):
        read_features(path, 6)


@pytest.mark.parametrize("dataset", FOREIGN)
def test_codes_that_are_not_ours_are_one_line(tmp_path: Path, dataset: dict[str, Any]) -> None:
    path = codes(tmp_path / "codes.h5")
    with h5py.File(path, "r+") as file:
        replace("text", **dataset)(file["train"])
    with pytest.raises(CheckpointError, match=r"codes\.h5: (damaged|the codes of train were changed)"):
        read_codes(path, ("train",), {})


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (features, lambda path: read_features(path, 6)),
        (codes, lambda path: read_codes(path, ("train",), {})),
    ],
    ids=["features", "codes"],
)
def test_changed_bytes_give_arrays_or_one_line(
    tmp_path: Path, make: Callable[[Path], Path], read: Callable[[Path], object]
) -> None:
    path = make(tmp_path / "arrays.h5")
    whole, draws, lines = path.read_bytes(), random.Random(0), []
    for _ in range(150):
        content = bytearray(whole[: draws.randrange(len(whole))] if draws.random() < 0.1 else whole)
        for _ in range(draws.randint(1, 8)):
            # most of a small file is its head, as the head is what has to be parsed
            content[draws.randrange(-(-len(content) // 3))] = draws.choice((0, 1, 8, 127, 255))
        path.write_bytes(content)
        try:
            read(path)
        except CheckpointError as error:
            lines.append(str(error))
    assert lines
    assert lines == [one_line(line) for line in lines]
