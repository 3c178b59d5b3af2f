"""The disk cache: read when it holds what is asked for, made again when it is stale, damaged or foreign."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from medunifier_cli.errors import DataError
from medunifier_cli.run.cache import cached, cached_file, open_hdf5
from tests.folders import ROOT

VALUES = {"a": np.arange(1000, dtype=np.float32), "key": np.array([b"x", b"yz"]), "none": np.empty((0, 3))}


class Maker:
    """Computes the arrays and counts how often it had to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, NDArray[Any]]:
        self.calls += 1
        return VALUES


@pytest.fixture
def make() -> Maker:
    return Maker()


def same(arrays: dict[str, NDArray[Any]]) -> bool:
    return set(arrays) == set(VALUES) and all(
        np.array_equal(arrays[name], values) and arrays[name].dtype == values.dtype
        for name, values in VALUES.items()
    )


def test_the_second_call_reads_what_the_first_wrote(
    tmp_path: Path, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "folder" / "c.h5"
    assert same(cached(path, {"checkpoint": "x", "n": 3}, make))
    assert same(cached(path, {"n": 3, "checkpoint": "x"}, make)), "the order of a mapping means nothing"
    assert make.calls == 1
    assert [file.name for file in path.parent.iterdir()] == ["c.h5"]
    assert capsys.readouterr().err == ""


def test_another_origin_replaces_the_file_silently(
    tmp_path: Path, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.h5"
    cached(path, "one checkpoint", lambda: {"a": np.zeros(3)})
    assert same(cached(path, "another checkpoint", make))
    assert same(cached(path, "another checkpoint", make))
    assert make.calls == 1
    assert capsys.readouterr().err == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def no_hdf5(path: Path) -> None:
    path.write_bytes(b"an image, perhaps")


def of_an_older_version(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(3)
        file.attrs["n"] = 3


def unreadable_data(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.arange(1000), compression="gzip", fletcher32=True)
        file.attrs["made_of"] = "x"
        start = file["a"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\0" * 20
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "is damaged"),
        (no_hdf5, "is damaged"),
        (of_an_older_version, "does not say what it was made of"),
        (unreadable_data, "is damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_reported_and_made_again(
    tmp_path: Path, make: Maker, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "c.h5"
    cached(path, "x", make)
    spoil(path)
    assert same(cached(path, "x", make))
    assert make.calls == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"mu: {path}: {words}")
    assert same(cached(path, "x", make))
    assert make.calls == 2


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = np.zeros(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_file(tmp_path / "c.h5", "x", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "c.h5"
    assert same(cached(path, "x", make)), "arrays in memory do not need the file"
    assert "not cached" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"c\.h5: cannot be written"):
        cached_file(path, "x", lambda file: None)


def test_a_large_file_is_filled_once_and_keeps_its_path(tmp_path: Path) -> None:
    path, filled = tmp_path / "c.h5", []

    def fill(file: h5py.File) -> None:
        filled.append(1)
        file.create_dataset("rows", (4, 2), "f4")
        for row in range(4):
            file["rows"][row] = row

    for _ in range(2):
        assert cached_file(path, "x", fill) == path
    assert len(filled) == 1
    with h5py.File(path) as file:
        assert file["rows"][:, 0].tolist() == [0, 1, 2, 3]


def test_a_file_is_opened_whatever_its_file_system_does_with_locks(tmp_path: Path, make: Maker) -> None:
    """A lock that HDF5 cannot get, here as it is held elsewhere, used to fail a command after its work."""
    path = tmp_path / "a.h5"
    cached(path, "x", make)
    with path.open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):  # HDF5's own way: the lock that is held is one that it wants
            h5py.File(path, locking=True)
        assert same(cached(path, "x", make))
        assert make.calls == 1
        with open_hdf5(path, "w") as file:
            file["b"] = VALUES["a"]


def test_every_hdf5_file_is_opened_without_a_lock() -> None:
    sources = [path for folder in ("medunifier_cli", "plugins") for path in (ROOT / folder).rglob("*.py")]
    opening = [path.name for path in sources if "h5py.File(" in path.read_text(encoding="utf-8")]
    assert opening == ["cache.py"]
