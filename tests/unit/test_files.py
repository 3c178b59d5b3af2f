"""Atomic writes, hashes and JSON lines: what is left on disk when a write fails."""

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
from medunifier_cli.temporary import TEMPORARY

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
    with pytest.raises(type(failure)), files.atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of it")
        raise failure
    with pytest.raises(type(failure)), files.atomic_folder(path.parent / "folder") as folder:  # noqa: PT012
        (folder / "a").write_bytes(b"half of it")
        raise failure
    assert path.read_bytes() == OLD
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def test_two_writers_of_one_file_at_once_both_succeed(path: Path) -> None:
    """With one temporary name for both, the first to finish took the other's file away."""
    with files.atomic_write(path) as one:
        with files.atomic_write(path) as other:
            one.write(b"first")
            other.write(b"second")
        assert path.read_bytes() == b"second"
        one.write(b" and whole")
    assert path.read_bytes() == b"first and whole"
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def test_a_link_in_the_place_of_a_file_is_not_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write into a folder of results must not get a file elsewhere overwritten."""
    victim, link = path.parent / "victim", path.parent / "link"
    victim.write_bytes(OLD)
    link.symlink_to(victim)
    with pytest.raises(DataError, match="link: cannot be written"):
        files.append_line(link, "a line")
    with pytest.raises(CheckpointError, match="link: cannot be written"):
        files.open_lock(link, CheckpointError)
    with pytest.raises(FileExistsError):
        files.create_file(link)
    monkeypatch.setattr(files, "temporary_name", lambda _: link)  # somebody guessed it
    with pytest.raises(DataError, match=r"file\.json: cannot be written \(File exists\)"):
        files.write_text(path, "new")
    monkeypatch.undo()
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    files.write_text(link, "new")
    assert not link.is_symlink()
    assert victim.read_bytes() == path.read_bytes() == OLD


def test_a_folder_has_its_name_only_when_it_is_whole(path: Path) -> None:
    folder = path.parent / "folder"
    for content in ("one", "two"):
        with files.atomic_folder(folder) as unfinished:
            (unfinished / "a").write_text(content)
            assert folder.exists() == (content == "two")
        assert (folder / "a").read_text() == content
    assert sorted(other.name for other in path.parent.iterdir()) == ["file.json", "folder"]


def test_lines_are_added_at_the_end(path: Path) -> None:
    for line in ("ä", "b"):
        files.append_line(path, line)
    assert path.read_bytes() == OLD + "ä\nb\n".encode()


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
    assert TEMPORARY not in line
    assert message in line
    assert path.read_bytes() == OLD
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def _make(path: Path, text: str, error: type[CheckpointError]) -> None:
    with files.atomic_folder(path, error) as folder:
        (folder / "a").write_text(text)


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


def test_json_lines_end_at_line_feeds_only(path: Path) -> None:
    rows = [{"text": "a\u2028b"}, {"text": "c\u0085d"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert files.read_lines(path) == rows
