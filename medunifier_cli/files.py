"""Read and write text as UTF-8 in every locale; write files so that they are complete or absent; hash."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from medunifier_cli.errors import DataError, MuError, NotTextError
from medunifier_cli.temporary import temporary_name

HASH_BLOCK = 1 << 20
"""Bytes read at a time to hash a file."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that more room would mend: disk full, quota exceeded, file too large for the file system."""
LINE = 1 << 25
"""Longest line of a text that is read by lines, in characters; a row of SIIM's masks has below a million."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of UTF-16, in which some spreadsheets and Windows shells save text."""


@contextlib.contextmanager
def atomic_write(
    path: Path, error: type[MuError] = DataError, texts_of: Path | Sequence[Path] | None = None
) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` only once all of it is on disk: readers see the old or the new
    content, even after a kill or a power cut. Several processes may write the same file at once.

    Args:
        path: in a folder that exists. A link of that name is replaced, not followed.
        error: type of the error that a failed write raises.
        texts_of: data whose report texts or films the file will hold: whoever cannot read all of them cannot
            read it.

    Yields:
        The file, open to be written and read back.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    with explained(path, error):
        temporary = temporary_name(path)  # same folder: a rename across disks is a copy
        try:
            with create_file(temporary) as file:
                for data in [texts_of] if isinstance(texts_of, Path) else texts_of or ():
                    os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode & readers_of(data, path))
                yield file
                file.flush()
                # without it the rename can reach the disk before the contents, and leave an empty file
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path, error: type[MuError] = DataError) -> Iterator[Path]:
    """An empty folder that becomes `path` only once all that was written into it is on disk.

    Args:
        path: of a folder in one that exists. An earlier folder of that name is replaced: it is never there
            in part, but a kill at the wrong moment may leave none.
        error: type of the error that a failed write raises.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    with explained(path, error):
        temporary, earlier = temporary_name(path), temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            sync(temporary)
            if path.is_symlink() or path.exists():
                path.rename(earlier)
            temporary.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if earlier.is_symlink():
            earlier.unlink()
        else:
            shutil.rmtree(earlier, ignore_errors=True)


def readers_of(data: Path, path: Path) -> int:
    """A mask for the mode of `path`: no group and no others, where they cannot read `data`.

    Args:
        data: a file, or a folder of shards; folders count up to the one in which `path` lies as well.
        path: of a file or folder that holds texts of the data.
    """
    mask = 0o777
    try:
        here, there = data.resolve(), path.resolve()
        folders = [folder for folder in (here, *here.parents) if folder.is_dir()]
        apart = [folder for folder in folders if not there.is_relative_to(folder)]
        files = here.glob("*.tar") if here.is_dir() else [here]
        parent = there.parent.stat()
        group = parent.st_gid if parent.st_mode & stat.S_ISGID else os.getegid()
        for place in (*apart, *files):
            found, needed = place.stat(), 1 if place.is_dir() else 4
            if not found.st_mode & needed:
                mask &= ~0o007
            # a reader in the group of `path` is one of others there, if that is another group
            if not found.st_mode & (needed << 3 if found.st_gid == group else needed):
                mask &= ~0o070
    except OSError:
        return 0o700
    return mask


def make_folder(path: Path, error: type[MuError] = DataError) -> None:
    """Make a folder and those it lies in, unless it is there.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to, or a file is in the way.
    """
    with explained(path, error):
        path.mkdir(parents=True, exist_ok=True)


def create_file(path: Path) -> IO[bytes]:
    """Open a file that is not there yet, to be written and read back.

    Raises:
        OSError: there is one; a link that somebody has put there counts, and is not followed.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(handle, "w+b")


def append_line(path: Path, line: str, error: type[MuError] = DataError) -> None:
    """Add a line to a file that grows: closed each time, so that a kill loses nothing that was added before.

    A kill may cut the line short, which its readers allow for. A link in the place of the file is refused.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    with explained(path, error):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(handle, "ab") as file:
            file.write(line.encode() + b"\n")


def open_lock(path: Path, error: type[MuError] = DataError) -> IO[bytes]:
    """Open a file that serves as a lock. Nothing is written, so that a link of that name spoils no file.

    Raises:
        MuError: of the type `error`: it is a link, or cannot be opened.
    """
    with explained(path, error):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        return os.fdopen(handle, "r+b")


@contextlib.contextmanager
def explained(path: Path, error: type[MuError] = DataError) -> Iterator[None]:
    """Turn an OSError into one line of type `error` that names `path`."""
    try:
        yield
    except OSError as failure:
        if failure.errno in FULL:
            raise error(
                f"{path}: no space left for it ({os.strerror(failure.errno)}); nothing half-written is "
                "left, finished files stay: make room and run the same command again"
            ) from failure
        raise error(f"{path}: cannot be written ({failure.strerror or failure})") from failure


def write_text(
    path: Path, text: str, error: type[MuError] = DataError, texts_of: Path | Sequence[Path] | None = None
) -> None:
    """Write a small text file (UTF-8) atomically, see `atomic_write`."""
    with atomic_write(path, error, texts_of) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, error: type[MuError] = DataError) -> None:
    """Write indented JSON (UTF-8) atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", error)


def must_exist(paths: Sequence[Path]) -> None:
    """Raise MuError for the first file that is not there: before a model is loaded for it."""
    for path in paths:
        if not path.exists():
            raise MuError(f"{path}: no such file")


def read_text(path: Path) -> str:
    """All of a text file, see `decode_text`.

    Raises:
        OSError: the file cannot be read; the caller knows what it is for.
        NotTextError: it is neither UTF-8 nor marked UTF-16.
    """
    return decode_text(path.read_bytes(), str(path))


def text_lines(path: Path) -> list[str]:
    """The lines of a text file without their ends, as an editor counts them.

    Not `str.splitlines`, which also ends a line at U+2028, U+0085 or a form feed: vocabularies and JSON hold
    these as ordinary characters.

    Raises:
        OSError, NotTextError: as `read_text`.
    """
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def decode_text(content: bytes, shown: str) -> str:
    """Bytes -> text: UTF-8, or UTF-16 that begins with its mark; marks are dropped, lines end at a line feed.

    Other encodings cannot be told apart by their bytes, so they are refused: a guess would give wrong text.

    Raises:
        NotTextError: neither of the two; `shown` names the file in the message.
    """
    try:
        text = content.decode(_encoding(content[:2]))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_text(f"{shown}:{line}", f"byte 0x{content[error.start]:02x}") from error
    if (zero := text.find("\0")) >= 0:  # UTF-16 or UTF-32 without its mark is valid UTF-8
        line = text.count("\n", 0, zero) + 1
        raise _not_text(f"{shown}:{line}", "a zero byte")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_lines(raw: IO[bytes], shown: str, encoding: str = "") -> Iterator[str]:
    """As `decode_text`, line by line while reading; line ends are left as they are, as `csv` wants them.

    Args:
        encoding: of a file that is known to have another one than `decode_text` reads.

    Raises:
        NotTextError: see `decode_text`.
        LookupError: there is no such encoding.
    """
    buffered = io.BufferedReader(cast("io.RawIOBase", raw))
    text = io.TextIOWrapper(buffered, encoding=encoding or _encoding(buffered.peek(2)[:2]), newline="")
    number = 0
    try:
        # not `for line in text`, which keeps the whole of a line however long it is
        while line := text.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise NotTextError(f"{shown}:{number}: a line of more than {LINE:,} characters")
            if "\0" in line:
                raise _not_text(f"{shown}:{number}", "a zero byte")
            yield line
    except UnicodeDecodeError as error:  # of a block of lines, the first of which is the next one
        byte = f"byte 0x{error.object[error.start]:02x}"
        raise _not_text(f"{shown}, after line {number}", byte) from error


def _encoding(start: bytes) -> str:
    return "utf-16" if start in UTF_16 else "utf-8-sig"


def _not_text(where: str, found: str) -> NotTextError:
    return NotTextError(
        f"{where}: not UTF-8 text ({found}); save it as UTF-8: on Windows choose that encoding, elsewhere "
        "`iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`"
    )


def sync(path: Path) -> None:
    """Make a file's contents, or the renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
