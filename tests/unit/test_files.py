"""Atomic writes, hashes and JSON lines: what is left on disk when a write fails or a process is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medunifier_cli import files
from medunifier_cli.errors import CheckpointError, DataError

OLD = b"the old content"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file.json").write_bytes(OLD)
    return tmp_path / "file.json"


def test_new_content_replaces_the_old_only_at_the_end(path: Path) -> None:
    with files.atomic_write(path) as file:
        file.write(b"the new content")
        file.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == b"the new content"
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("failure", [ValueError("in the middle"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(path: Path, failure: BaseException) -> None:
    def make(temporary: Path) -> None:
        temporary.write_bytes(b"half of it")
        raise failure

    with pytest.raises(type(failure)), files.atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of it")
        raise failure
    with pytest.raises(type(failure)):
        files.atomic_make(path, make)
    assert path.read_bytes() == OLD
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def test_a_file_left_by_a_killed_process_is_written_over(path: Path) -> None:
    (path.parent / ("file.json" + files.TEMPORARY)).write_bytes(
        b"a long torn beginning of some other content"
    )
    with files.atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("write", [files.write_text, lambda path, text, error: _make(path, text, error)])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left for it (No space left on device); nothing half-written is left"),
        (errno.EDQUOT, "make room and run the same command again"),
        (errno.EIO, "cannot be written (Input/output error)"),
    ],
)
def test_a_disk_error_is_one_line_of_the_callers_type_and_names_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None], number: int, message: str
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError) as caught:
        write(path, "text", CheckpointError)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path.parent}/file.json")
    assert files.TEMPORARY not in line
    assert message in line
    assert path.read_bytes() == OLD
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def _make(path: Path, text: str, error: type[CheckpointError]) -> None:
    files.atomic_make(path, lambda temporary: temporary.write_text(text), error)


def test_a_folder_that_is_missing_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/x\.txt.*: cannot be written \(No such file or directory\)"):
        files.write_text(tmp_path / "nowhere" / "x.txt", "text")


def test_json_is_indented_utf8_and_reads_back(path: Path) -> None:
    value = {"title": "Größe", "values": [1, 2.5, None]}
    files.write_json(path, value)
    assert json.loads(path.read_bytes().decode("utf-8")) == value
    assert "Größe" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("size", [0, 1, files.HASH_BLOCK, files.HASH_BLOCK + 1])
def test_sha256_is_that_of_the_whole_content(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_lines_skip_one_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert files.read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
