"""Start, watch and end the processes that load batches, so that none is waited for without an end or a word.

Torch's DataLoader starts the processes; here is what it leaves to chance. A worker may die (memory), wait for
ever (a file system that does not answer), or be unable to pass on what it has read (the folder of sockets).
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from medunifier_cli.errors import MuError
from medunifier_cli.terminal.say import say

LOOK = 2.0
"""Seconds between two looks, while a batch is waited for, at whether all loader processes are alive."""
SILENCE = 60.0
"""Seconds that a batch may take before a line says that it is waited for."""


def next_answer(answers: Iterator[Any], folder: Path) -> Any:
    """The next answer of the workers, None after the last; reports once that it takes long."""
    started = time.monotonic()
    silent = True
    while True:
        try:
            return next(answers, None)
        except RuntimeError as error:
            # A wait with an end is the only one in which torch looks at its workers. Their death has another
            # text, and after a time out the same iterator may be asked again.
            if "DataLoader timed out" not in str(error):
                raise
        if silent and time.monotonic() - started > SILENCE:
            silent = False
            say(f"{folder}: no batch for {SILENCE:.0f} s; does its file system answer?", always=True)


def check_sockets() -> None:
    """Check that a worker will be able to pass images on: it sends their descriptors through a socket.

    Raises:
        MuError: the folder of temporary files has too long a name for one, or cannot hold one.
    """
    try:
        # As the workers do later, where the error would be lost in a thread and the batch never come. The
        # path of a socket has at most 107 bytes, of which Python takes 32.
        Listener(family="AF_UNIX").close()
    except OSError as error:
        raise MuError(
            f"TMPDIR: loader processes cannot make a socket under {_temporary_folder()} "
            f"({error.strerror or error}); set it to "
            "a folder with a shorter name, such as /tmp, or data.workers to 0"
        ) from error


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # not one of the usual folders can be written to
        return os.environ.get("TMPDIR", "/tmp")


@contextmanager
def without_child_handler() -> Iterator[None]:
    """Put back the handler of SIGCHLD that torch replaces when its first workers start.

    Torch's raises RuntimeError wherever this process is when a worker dies, in the middle of an optimiser
    step or of a checkpoint, where nobody expects it. `next_answer` finds out when a batch is missing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # torch sets none there
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def start_worker(_: int) -> None:
    """Set how a new worker takes signals: it outlives those of its process group, and obeys its parent."""
    # SLURM and Ctrl-C signal the whole process group, but only the training process may react: it still
    # needs batches to finish its step before the last checkpoint.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGUSR1))  # held back since its birth
    # SIGTERM is also how torch and multiprocessing end a worker that is stuck, so the sender decides. Only
    # sigwaitinfo tells who it is, and only for a signal that is blocked, in this thread and those to come.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this worker as soon as SIGTERM comes from its parent; others' are ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
