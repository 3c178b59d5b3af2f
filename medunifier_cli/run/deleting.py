"""Delete what is left of checkpoints: under other names first, and never at the cost of a run.

A folder that is half deleted must not be taken for a checkpoint; one that cannot be deleted is tried again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from medunifier_cli.terminal.say import say

DONE = "DONE"
"""File that a whole checkpoint has, written last: see `checkpoint.store`."""
HIDDEN = re.compile(r"\.(?:writing|deleting)-(step-(\d{8}))(?:-\d+)?")


def put_back(folder: Path) -> None:
    """Give a whole checkpoint that a kill left without its name that name again.

    Where a step is saved again, neither folder has it for a moment. Call it before leftovers are deleted.
    """
    there = [int(path.name[-8:]) for path in folder.glob(f"step-{'[0-9]' * 8}")]
    newest = max(there, default=-1)
    for kind in ("writing", "deleting"):  # the new one is whole if its last file is there
        for path in sorted(folder.glob(f".{kind}-step-*")):
            named = HIDDEN.fullmatch(path.name)
            if named and int(named[2]) > newest and (path / DONE).exists():
                path.rename(folder / named[1])
                newest = int(named[2])


def delete_left_over(folder: Path) -> None:
    """Delete what a writer that was killed left half written or half deleted."""
    for stale in (*folder.glob(".writing-*"), *folder.glob(".deleting-*")):
        try:
            delete(stale)
        except OSError as error:
            say_kept(stale, error)


def say_kept(path: Path, error: OSError) -> None:
    """Warn of what cannot be deleted, as where NFS keeps a file that is open: no reason to end a run."""
    say(f"warning: {path}: cannot be deleted yet ({reason_of(error)}); tried again at the next checkpoint")


def free(path: Path) -> Path:
    """The path, or one like it that nothing has."""
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


def move_away(path: Path) -> Path:
    """Rename a folder, if it is there: a half-deleted one must never be taken for a checkpoint."""
    trash = free(path.with_name(f".deleting-{path.name.lstrip('.')}"))
    if path.exists() or path.is_symlink():
        path.rename(trash)
    return trash


def delete(path: Path) -> None:
    """Delete a folder with its contents, or whatever else has its name; not what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """Why a file could not be read or written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
