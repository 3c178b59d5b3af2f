"""Write files so that they are complete or absent; hash files; read JSON lines."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from medunifier_cli.errors import DataError, MuError

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written."""
HASH_BLOCK = 1 << 20
"""Bytes read at a time to hash a file."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that more room would mend: disk full, quota exceeded, file too large for the file system."""


@contextlib.contextmanager
def atomic_write(path: Path, tag: str = "", error: type[MuError] = DataError) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` only once all of it is on disk: readers see the old or the new
    content, even after a kill or a power cut.

    Args:
        path: in a folder that exists.
        tag: tells temporary names apart where several processes may write the same file at once.
        error: type of the error that a failed write raises.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    temporary = path.with_name(path.name + tag + TEMPORARY)  # same folder: a rename across disks is a copy
    with explained(temporary, error):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                # without it the rename can reach the disk before the contents, and leave an empty file
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_make(path: Path, make: Callable[[Path], object], error: type[MuError] = DataError) -> None:
    """As `atomic_write`, for a library that opens the file itself: `make` writes to the path it is given.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with explained(temporary, error):
        try:
            make(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def explained(path: Path, error: type[MuError] = DataError) -> Iterator[None]:
    """Turn an OSError into one line of type `error` that names `path` without its temporary suffix."""
    try:
        yield
    except OSError as failure:
        name = path.name.removesuffix(TEMPORARY)
        if failure.errno in FULL:
            raise error(
                f"{path.parent / name}: no space left for it ({os.strerror(failure.errno)}); nothing "
                "half-written is left, finished files stay: make room and run the same command again"
            ) from failure
        raise error(f"{path.parent / name}: cannot be written ({failure.strerror or failure})") from failure


def write_text(path: Path, text: str, error: type[MuError] = DataError) -> None:
    """Write a small text file (UTF-8) atomically; several processes may write the same file at once."""
    with atomic_write(path, f".{os.getpid()}", error) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, error: type[MuError] = DataError) -> None:
    """Write indented JSON (UTF-8) atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", error)


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a file of JSON lines; none if there is no file."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # a process was killed while it wrote this line
    return lines
