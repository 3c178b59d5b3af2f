"""Files that are whole or absent: the one atomic write, the one hash, the one reader of JSON lines."""

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
"""Ending of a file that is being written."""
HASH_BLOCK = 1 << 20
"""Bytes read at a time to hash a file."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: Path, tag: str = "", error: type[MuError] = DataError) -> Iterator[IO[bytes]]:
    """A file that gets its name only when all of it is on the disk; readers and a kill see the old one or the
    new one.

    Args:
        path: in a folder that exists.
        tag: tells temporary names apart where several processes may write the same file at once.
        error: what a failed write is raised as.

    Raises:
        MuError: of the type `error`: the disk is full or cannot be written to.
    """
    temporary = path.with_name(path.name + tag + TEMPORARY)
    with explained(temporary, error):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_make(path: Path, make: Callable[[Path], object], error: type[MuError] = DataError) -> None:
    """The same for a library that opens the file itself: `make` writes the path it is given.

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
    """Turn a failed write into one line."""
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
    """Write a small text file (UTF-8), whole or not at all. Processes may write the same file at once."""
    with atomic_write(path, f".{os.getpid()}", error) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any, error: type[MuError] = DataError) -> None:
    """Write JSON for people and machines, whole or not at all."""
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
    """All whole lines of a file of JSON lines; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # torn by a kill while it was written
    return lines
