"""Files that are still being written: whose they are, and which of them a dead process has left behind.

The name of such a file tells machine and process apart, so that two writers of one file never share one, and
so that a later start can tell a leftover from a file that somebody is writing now.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of a file or folder that is still being written."""
DAY = 86_400
"""Seconds after which a leftover goes although nobody here can tell whether its writer lives."""
NAME_BYTES = 255
"""Longest name of a file that Linux allows."""

_OURS = re.compile(r".+\.([0-9a-f]{8})-(\d+)-(\d+)-\d+\.tmp", re.DOTALL)
# of earlier versions: `.reports-x.jsonl.4711`, `codes.h5.4711.tmp`, `test.index.npy.tmp`, `.x.h5.writing`.
_OLDER = re.compile(
    r"\..+\.(?:json|jsonl|yaml|h5|png|csv|html|txt|md)\.(?:\d+|writing)"
    r"|.+\.(?:\d+|json|jsonl|npy|png|tar)\.tmp",
    re.DOTALL,
)
_NUMBERS = itertools.count()


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process, and no other call in this one, gives."""
    ending = f".{_machine()}-{os.getpid()}-{_start_of(os.getpid()) or 0}-{next(_NUMBERS)}{TEMPORARY}"
    room = NAME_BYTES - len(ending)
    return path.with_name(os.fsdecode(os.fsencode(path.name)[:room]) + ending)


def is_temporary(name: str) -> bool:
    """Whether a name has the form that this or an earlier version gives to a file that is being written."""
    return bool(_OURS.fullmatch(name) or _OLDER.fullmatch(name))


def sweep(folder: Path, depth: int = 0) -> int:
    """Remove what dead processes were writing in a folder when they ended; returns how many there were.

    What a living process writes stays, and so does for a day what another machine may be writing. Nothing
    fails: where a leftover cannot be removed, it is in nobody's way.

    Args:
        folder: need not exist.
        depth: levels of folders below it that are swept as well; links are not followed.
    """
    removed = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            with contextlib.suppress(OSError):
                if is_temporary(entry.name):
                    if _is_left_behind(Path(entry.path)):
                        _remove(Path(entry.path))
                        removed += 1
                elif depth and entry.is_dir(follow_symlinks=False):
                    removed += sweep(Path(entry.path), depth - 1)
    return removed


def old_folders(folder: Path, names: str) -> Iterator[Path]:
    """Folders whose names fit a pattern, and in which nothing was written for a day."""
    for path in folder.glob(names):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and _age(path) > DAY:
                yield path


def _is_left_behind(path: Path) -> bool:
    match = _OURS.fullmatch(path.name)
    if match is None or match[1] != _machine():
        return _age(path) > DAY
    return not _lives(int(match[2]), int(match[3]))


def _lives(pid: int, started: int) -> bool:
    """Whether the process with this number still runs, and is the one that began at `started`."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    now = _start_of(pid)
    return now is None or not started or now == started


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since this machine did; 0 for one that has ended, None if unknown.

    Numbers of processes are given again: after a restart of a container the same ones within seconds.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name of the program, in brackets, may hold blanks and brackets
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


@functools.cache
def _machine() -> str:
    """Eight hex digits for this machine since it was started, as far as processes have their own numbers."""
    parts = [os.fsencode(socket.gethostname())]
    # two nodes may have one name; and containers of one node have process numbers of their own
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        parts.append(file.read())
    with contextlib.suppress(OSError):
        parts.append(os.fsencode(os.readlink("/proc/self/ns/pid")))
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:8]


def _age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
