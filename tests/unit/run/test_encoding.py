"""Long encodings: killed anywhere, made by two processes at once, on a full disk; the file is the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunifier_cli.errors import DataError, Stopped
from medunifier_cli.run import encoding
from medunifier_cli.run.cache import Arrays, is_cached, read_cache
from medunifier_cli.run.encoding import Encode, Rows, encoded, encoded_file, encoded_mapped
from medunifier_cli.temporary import DAY
from tests import warm
from tests.full_disk import room_for

TOTAL, BATCH = 50, 8
ROWS = np.random.default_rng(0).normal(size=(TOTAL, 3, 4)).astype("f4")
KEYS = np.array([f"key-{i}".encode() for i in range(TOTAL)])
MADE_OF = {"checkpoint": "abc", "n": TOTAL}


def batch(start: int) -> Arrays:
    return {"rows": ROWS[start : start + BATCH], "keys": KEYS[start : start + BATCH]}


class Encoder:
    """Encodes batch by batch, notes which, and fails at a row of the test's choice."""

    def __init__(self, fail_at: int = TOTAL, failure: type[BaseException] = KeyboardInterrupt) -> None:
        self.fail_at, self.failure, self.starts = fail_at, failure, list[int]()
        self.closed = False

    def __call__(self, first: int) -> Generator[Arrays, None, None]:
        try:
            for start in range(first, TOTAL, BATCH):
                if start >= self.fail_at:
                    raise self.failure
                self.starts.append(start)
                yield batch(start)
        finally:
            self.closed = True


def in_memory(path: Path, encode: Encode) -> Arrays:
    return encoded(path, MADE_OF, TOTAL, encode)


def in_a_file(path: Path, encode: Encode) -> Arrays:
    found = read_cache(encoded_file(path, MADE_OF, TOTAL, encode), MADE_OF)
    assert found is not None
    return found


def mapped(path: Path, encode: Encode) -> Arrays:
    return encoded_mapped(path, MADE_OF, TOTAL, encode, "rows")


Make = Callable[[Path, Encode], Arrays]
BOTH = pytest.mark.parametrize("make", [in_memory, in_a_file, mapped])


def right(arrays: Arrays) -> bool:
    return np.array_equal(arrays["rows"], ROWS) and arrays["rows"].dtype == ROWS.dtype


def undisturbed(folder: Path, make: Make) -> bytes:
    folder.mkdir()
    make(folder / "c.h5", Encoder())
    return (folder / "c.h5").read_bytes()


@pytest.fixture
def keep_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go to disk after each batch, and not after half a minute."""
    monkeypatch.setattr(encoding, "KEEP_SECONDS", 0.0)


@BOTH
def test_a_short_encoding_leaves_its_file_alone(tmp_path: Path, make: Make) -> None:
    encode = Encoder()
    arrays = make(tmp_path / "c.h5", encode)
    assert right(arrays)
    assert arrays["keys"].tolist() == KEYS.tolist()
    assert encode.starts == list(range(0, TOTAL, BATCH))
    assert right(make(tmp_path / "c.h5", Encoder(fail_at=0))), "read, and not encoded"
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


@BOTH
@pytest.mark.parametrize("failures", [(8,), (24, 24, 40), (48,)])
def test_an_encoding_goes_on_where_it_was_killed(
    tmp_path: Path, make: Make, failures: tuple[int, ...], keep_each: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, done = tmp_path / "run" / "c.h5", 0
    for fail_at in failures:
        encode = Encoder(fail_at, SystemExit)  # what no code of ours answers, as it cannot a kill
        with pytest.raises(SystemExit):
            make(path, encode)
        assert encode.starts == list(range(done, fail_at, BATCH))
        assert encode.closed
        assert not path.exists()
        done = fail_at
    capsys.readouterr()
    encode = Encoder()
    assert right(make(path, encode))
    assert encode.starts == list(range(done, TOTAL, BATCH))
    assert capsys.readouterr().err == f"mu: {path}: {done} of {TOTAL} images were encoded before\n"
    assert path.read_bytes() == undisturbed(tmp_path / "calm", make)
    assert [other.name for other in path.parent.iterdir()] == ["c.h5"]


@BOTH
@pytest.mark.parametrize("failure", [KeyboardInterrupt, Stopped])
def test_a_signal_loses_no_row(tmp_path: Path, make: Make, failure: type[BaseException]) -> None:
    """Where half a minute has not passed since the last rows were kept."""
    with pytest.raises(failure):
        make(tmp_path / "c.h5", Encoder(40, failure))
    encode = Encoder()
    assert right(make(tmp_path / "c.h5", encode))
    assert encode.starts == [40, 48]


@BOTH
def test_damaged_rows_are_said_and_encoded_again(
    tmp_path: Path, make: Make, keep_each: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.h5"
    with pytest.raises(SystemExit):
        make(path, Encoder(40, SystemExit))
    (folder,) = tmp_path.iterdir()
    damaged = folder / "rows-000000016-000000024.h5"
    content = bytearray(damaged.read_bytes())
    place = bytes(content).index(ROWS[17].tobytes())
    content[place] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    encode = Encoder()
    assert right(make(path, encode))
    assert encode.starts == [16, 24, 32, 40, 48]
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"mu: {damaged}: is damaged; computing it again"
    assert second.endswith(f"16 of {TOTAL} images were encoded before")


@BOTH
def test_rows_of_another_checkpoint_are_not_used(tmp_path: Path, make: Make, keep_each: None) -> None:
    path = tmp_path / "c.h5"
    with pytest.raises(SystemExit):
        encoded(path, {"checkpoint": "another"}, TOTAL, Encoder(24, SystemExit))
    (other,) = tmp_path.iterdir()
    encode = Encoder()
    assert right(make(path, encode))
    assert encode.starts[0] == 0
    assert other.exists(), "somebody may be encoding them now"
    os.utime(other, (other.stat().st_mtime - DAY - 60,) * 2)
    path.unlink()
    make(path, Encoder())
    assert [left.name for left in tmp_path.iterdir()] == ["c.h5"]


@BOTH
def test_two_at_once_both_succeed(tmp_path: Path, make: Make, keep_each: None) -> None:
    """The second begins when the first has come half way, and ends before it."""
    path, second = tmp_path / "c.h5", Encoder()

    def encode(first: int) -> Generator[Arrays, None, None]:
        for start in range(first, TOTAL, BATCH):
            if start == 24:
                assert right(make(path, second))
            yield batch(start)

    assert right(make(path, encode))
    assert second.starts == [24, 32, 40, 48], "it takes over what the first has done"
    assert is_cached(path, MADE_OF)
    assert [left.name for left in tmp_path.iterdir()] == ["c.h5"]


def test_rows_of_two_processes_may_overlap() -> None:
    spans = sorted([(0, 8), (0, 16), (8, 24), (16, 24), (16, 40), (32, 48), (40, 50), (50, 60)])
    assert encoding._chain(spans, 50) == [(0, 16), (16, 40), (40, 50)]
    assert encoding._chain([(8, 16), (24, 32)], 50) == []


def test_a_full_disk_is_one_line_and_what_was_encoded_stays(tmp_path: Path, keep_each: None) -> None:
    path = tmp_path / "c.h5"
    with pytest.raises(SystemExit):
        in_a_file(path, Encoder(24, SystemExit))
    with room_for(1000), pytest.raises(DataError, match=r"no space left for it .*run the same command again"):
        in_a_file(path, Encoder())
    encode = Encoder()
    assert right(in_a_file(path, encode))
    assert encode.starts[0] == 24


def test_in_memory_a_full_disk_costs_only_the_file(
    tmp_path: Path, keep_each: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_for(1000):
        assert right(in_memory(tmp_path / "c.h5", Encoder()))
    kept, cached = capsys.readouterr().err.splitlines()
    assert "not kept, a call that is interrupted computes it again" in kept
    assert "not cached, the next call computes it again" in cached
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_mapped_column_stays_in_the_file_and_the_others_do_not(tmp_path: Path) -> None:
    for _ in range(2):  # encoded, and from the file
        arrays = mapped(tmp_path / "c.h5", Encoder())
        assert isinstance(arrays["rows"], np.memmap)
        assert not isinstance(arrays["keys"], np.memmap)
        assert right(arrays)
        assert np.array_equal(arrays["keys"], KEYS)


def test_what_cannot_be_mapped_is_in_memory(
    tmp_path: Path, keep_each: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_for(1000):
        arrays = mapped(tmp_path / "c.h5", Encoder())
    assert right(arrays)
    assert not isinstance(arrays["rows"], np.memmap)
    assert "all in memory, since it cannot be kept" in capsys.readouterr().err


def test_an_error_of_the_data_is_none_of_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError):
        mapped(tmp_path / "c.h5", Encoder(16, DataError))
    assert capsys.readouterr().err == ""


def test_rows_are_kept_by_time_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(tmp_path / "c.h5", "x", TOTAL)
    rows.add(batch(0))
    assert not rows.folder.exists()
    monkeypatch.setattr(encoding, "KEEP_BYTES", 2 * ROWS[:8].nbytes)
    rows.add(batch(8))
    assert [path.name for path in rows.folder.iterdir()] == ["rows-000000000-000000016.h5"]


def test_rows_whose_folder_another_process_took_away_with_its_file_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended in "cannot be written (No such file or directory)", once in some hundred starts at once."""
    monkeypatch.setattr(encoding, "KEEP_SECONDS", 0.0)
    path, write, calls = tmp_path / "c.h5", encoding.write_cache, []

    def late(part: Path, *args: Any, **kwargs: Any) -> None:
        calls.append(part)
        if len(calls) == 3:
            # the other one has written its file, and deletes its rows while this one writes some of its own
            monkeypatch.setattr(encoding, "write_cache", write)
            in_a_file(path, Encoder())
            raise DataError(f"{part}: cannot be written (No such file or directory)")
        write(part, *args, **kwargs)

    monkeypatch.setattr(encoding, "write_cache", late)
    assert right(in_a_file(path, Encoder()))
    assert len(calls) == 3


PROCESS = """
import sys, time
from pathlib import Path
from medunifier_cli.run import encoding
from tests.unit.run.test_encoding import Encoder, in_a_file, in_memory, right
encoding.KEEP_SECONDS = 0.0
while not Path(sys.argv[1]).with_name("go").exists():
    time.sleep(0.001)
make = {"memory": in_memory, "file": in_a_file}[sys.argv[2]]
assert right(make(Path(sys.argv[1]), Encoder()))
"""


@pytest.mark.parametrize("make", ["memory", "file"])
def test_processes_that_make_one_file_at_once(tmp_path: Path, make: str) -> None:
    """As a job array over fractions does: five of eight pairs failed when they shared a temporary name."""
    processes = [warm.start(["-c", PROCESS, tmp_path / "c.h5", make]) for _ in range(3)]
    time.sleep(0.2)
    (tmp_path / "go").touch()
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert is_cached(tmp_path / "c.h5", MADE_OF)
