"""How far a run is: its last whole checkpoint, whether a process trains it now, and its size on the disk.

Looks at names and sizes alone, so that many runs can be listed at once; imports no torch.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from medunifier_cli.run.deleting import DONE
from medunifier_cli.run.record import LOCK, Run


def saved_step(run: Run) -> int | None:
    """Step of the newest checkpoint that was written to its end; None without one."""
    steps = [
        int(path.parent.name.removeprefix("step-"))
        for path in run.checkpoints.glob(f"step-{'[0-9]' * 8}/{DONE}")
    ]
    return max(steps, default=None)


def identities(run: Run) -> set[str]:
    """Hashes of the checkpoints that are there, as result files name them; see `store.identity`."""
    found = run.checkpoints.glob(f"step-{'[0-9]' * 8}/{DONE}")
    return {path.read_bytes().strip().decode(errors="replace")[:16] for path in found}


def is_trained_now(run: Run) -> bool:
    """Whether a process holds the run, as far as the file system has locks."""
    try:
        with (run.folder / LOCK).open("rb") as file:
            # a process that is about to train waits for longer than this holds it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # gone while it was looked at
                continue
    return total
