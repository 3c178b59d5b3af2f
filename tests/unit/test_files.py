"""Atomic writes, hashes and JSON lines: what is left on disk when a write fails or a process is killed."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medunifier_cli import files
from medunifier_cli.errors import CheckpointError, DataError, NotTextError

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


TEXT = "clé,größe\na\u2028b,1\n\nc\u0085\x0cd,2\n"
"""With characters at which `str.splitlines` ends a line, but no editor does."""
LINES = ["clé,größe", "a\u2028b,1", "", "c\u0085\x0cd,2"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_whatever_program_saved_it(path: Path, encoding: str, end: str) -> None:
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert files.read_text(path) == TEXT
    assert files.text_lines(path) == LINES
    path.write_bytes(TEXT.rstrip("\n").replace("\n", end).encode(encoding))
    assert files.text_lines(path) == LINES


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf_16_in_both_byte_orders(path: Path, mark: bytes, encoding: str) -> None:
    path.write_bytes(mark + TEXT.encode(encoding))
    assert files.read_text(path) == TEXT


def test_an_empty_file_has_no_lines(path: Path) -> None:
    path.write_bytes(b"")
    assert files.text_lines(path) == []
    path.write_bytes(b"\n")
    assert files.text_lines(path) == [""]


NOT_TEXT = {
    "windows-1252": ("ok\nsecret Größe\n".encode("windows-1252"), "2"),
    "latin-1": ("ok\nsecret é".encode("latin-1"), "2"),
    "utf-16 without mark": ("secret\n".encode("utf-16-le"), "1"),
    "utf-32": ("secret\n".encode("utf-32"), "1"),
    "utf-16 cut short": ("secret\n".encode("utf-16")[:-1], "1"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", "1"),
}


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_other_encodings_are_one_line_without_their_text_instead_of_wrong_text(path: Path, kind: str) -> None:
    content, line = NOT_TEXT[kind]
    path.write_bytes(content)
    with pytest.raises(
        NotTextError, match=rf"file\.json:{line}: not UTF-8 text .*save it as UTF-8"
    ) as caught:
        files.read_text(path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    with path.open("rb") as raw, pytest.raises(NotTextError, match=r"file\.json.*not UTF-8 text"):
        list(files.decode_lines(raw, str(path)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_a_stream_keep_their_ends_for_the_csv_reader(encoding: str) -> None:
    text = 'key,note\r\na,"two\nlines"\r\nb,x\u2028y\r\n'
    packed = io.BytesIO(gzip.compress(text.encode(encoding)))
    lines = list(files.decode_lines(gzip.GzipFile(fileobj=packed), "a.csv.gz"))  # type: ignore[arg-type]
    assert "".join(lines) == text
    assert list(csv.reader(lines)) == [["key", "note"], ["a", "two\nlines"], ["b", "x\u2028y"]]
