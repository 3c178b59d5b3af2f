"""Names of the files in a prepared folder, and the locks on it.

Next to the shards `<split>-<nnnnnn>.tar` and `manifest.json`, which `data.shards` defines as it reads them:

    <split>.index.npy       index of a split, memory-mapped by the loader
    sheet-<split>.png       contact sheet
    rejects.jsonl           rows and images left out, and why
    rescaled.jsonl          images kept whose grey levels could not be meant, and why; absent if there is none
    .progress/              everything a restart needs:
        settings.json           what the shards depend on
        drops.jsonl             rows left out by the plugin
        <split>-<nnnnnn>.json   receipt of a finished shard
        lock-*                  locks of the running parts, and of the part that writes the manifest
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from medunifier_cli.errors import DataError
from medunifier_cli.files import open_lock
from medunifier_cli.terminal.say import say

REJECTS = "rejects.jsonl"
RESCALED = "rescaled.jsonl"
INDEX = ".index.npy"
"""Ending of a split's index."""
RECEIPTS = ".progress"
"""Folder with one small file per finished shard, from which a restart resumes."""
SETTINGS = "settings.json"
"""In the folder of receipts."""
DROPS = "drops.jsonl"
"""In the folder of receipts: the rows the plugin left out, in the order of the scan."""


def index_path(folder: Path, split: str) -> Path:
    """Index of a split."""
    return folder / f"{split}{INDEX}"


def sheet_path(folder: Path, split: str) -> Path:
    """Contact sheet of a split."""
    return folder / f"sheet-{split}.png"


def shard_path(folder: Path, name: str) -> Path:
    """Tar of the shard `name`, `<split>-<nnnnnn>`."""
    return folder / f"{name}.tar"


def receipt_path(folder: Path, name: str) -> Path:
    """Receipt of the shard `name`, `<split>-<nnnnnn>`."""
    return folder / RECEIPTS / f"{name}.json"


@contextlib.contextmanager
def locked(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """One call per part at a time, unless the file system has no locks."""
    with open_lock(out / RECEIPTS / f"lock-{part[0]}of{part[1]}") as file:
        try:
            # Not flock: forked workers inherit it, and would hold it a moment longer than a killed parent.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DataError(f"{out}: another `mu prepare` is running on it; wait until it ends") from error
        except OSError as error:
            say(
                f"{out}: the file system has no locks ({error.strerror}); see to it that no other "
                "`mu prepare` works on it"
            )
        yield


@contextlib.contextmanager
def join_lock(out: Path) -> Iterator[None]:
    """Held while the manifest is written: two parts may finish the last shards at the same time."""
    with open_lock(out / RECEIPTS / "lock-join") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
