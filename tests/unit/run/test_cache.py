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
from medunifier_cli.run import cache
from medunifier_cli.run.cache import cached, is_cached, read_cache, write_cache, write_hdf5
from tests.folders import ROOT
from tests.full_disk import room_for

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


def without_a_hash(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["sha256"]


def another_value(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["a"][500] = -1


def lost_rows(path: Path) -> None:
    """What a full disk did at the end of a file, without an error."""
    with h5py.File(path, "r+") as file:
        file["a"][900:] = 0


def another_name(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("key", "keys")


def another_shape(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        values = file["a"][:]
        del file["a"]
        file["a"] = values.reshape(10, 100)


def larger_than_memory(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["a"]
        file.create_dataset("a", (1 << 50,), "f4")


def data_elsewhere(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["a"]
        file["a"] = h5py.ExternalLink("/another/file.h5", "a")


def objects(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["a"]
        file.create_dataset("a", data=["text"] * 10, dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "is damaged"),
        (no_hdf5, "is damaged"),
        (of_an_older_version, "does not say what it was made of"),
        (without_a_hash, "has no hash of its contents"),
        (unreadable_data, "is damaged"),
        (another_value, "is damaged"),
        (lost_rows, "is damaged"),
        (another_name, "is damaged"),
        (another_shape, "is damaged"),
        (larger_than_memory, "is damaged"),
        (data_elsewhere, "is damaged"),
        (objects, "is damaged"),
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
        write_hdf5(tmp_path / "c.h5", "x", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "c.h5"
    assert same(cached(path, "x", make)), "arrays in memory do not need the file"
    assert "not cached" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"c\.h5: cannot be written"):
        write_cache(path, "x", VALUES)


@pytest.mark.parametrize("whole", [False, True])
def test_a_disk_that_fills_up_is_one_line_wherever_it_does(tmp_path: Path, whole: bool) -> None:
    """HDF5 itself loses the rows that it still holds, or ends the process."""
    rows = np.random.default_rng(0).normal(size=(900, 8, 12)).astype("f4")

    def fill(file: h5py.File) -> None:
        if whole:
            file["rows"] = rows
        else:
            file.create_dataset("rows", rows.shape, "f4")
            for start in range(0, len(rows), 64):
                file["rows"][start : start + 64] = rows[start : start + 64]

    path = tmp_path / "c.h5"
    write_hdf5(path, "x", fill)
    size = path.stat().st_size
    path.unlink()
    for limit in (*range(0, 4097, 1024), *range(size - 70_000, size, 6007), size - 1):
        with room_for(limit), pytest.raises(DataError, match=r"c\.h5: no space left for it"):
            write_hdf5(path, "x", fill)
        assert list(tmp_path.iterdir()) == []
    with room_for(size):
        write_hdf5(path, "x", fill)
    assert is_cached(path, "x")
    found = read_cache(path, "x")
    assert found is not None
    assert np.array_equal(found["rows"], rows)


def test_what_the_disk_did_not_keep_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path / "c.h5", "x", VALUES)
    hashes = iter(("one", "another"))
    monkeypatch.setattr(cache, "_contents_hash", lambda *_: next(hashes))
    with pytest.raises(DataError, match=r"d\.h5: the disk did not keep what was written"):
        write_cache(tmp_path / "d.h5", "x", VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


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
        write_cache(path, "y", VALUES)


def test_every_hdf5_file_is_opened_without_a_lock() -> None:
    sources = [path for folder in ("medunifier_cli", "plugins") for path in (ROOT / folder).rglob("*.py")]
    opening = [path.name for path in sources if "h5py.File(" in path.read_text(encoding="utf-8")]
    assert opening == ["cache.py"]
