"""Start one process per GPU and watch them; `group` joins what a launcher has started instead.

Ranks are started as Accelerate's own launchers do it, `PrepareForLaunch` in spawned processes, but are
watched here: `accelerate launch --cpu` starts a single process, and torchrun ends workers 30 s after a
SIGTERM and hides their exit code, so that no checkpoint of a large model and no exit 75 would survive it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from medunifier_cli.errors import INTERRUPTED, MuError
from medunifier_cli.terminal.say import say

GRACE = 5.0
"""Seconds that the other ranks have to end by themselves, once one has failed, before they are asked to;
after as many again they are killed."""
QUIET = "ignore:resource_tracker:UserWarning"
# ranks that stop by themselves are given any time: writing a large checkpoint takes minutes


def wanted_processes(requested: int, recipe: int) -> int:
    """Number of ranks to start on this machine.

    Args:
        requested: the command line's number, which takes precedence; 0 where it gives none.
        recipe: the recipe's number; 0 where it gives none, which means one per GPU, or one.

    Raises:
        MuError: more ranks than GPUs.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = requested or recipe or gpus or 1
    # NCCL refuses two ranks on one GPU, but only later and in a message that does not say what to do
    if gpus and ranks > gpus:
        raise MuError(f"{ranks} processes requested, but there are {gpus} GPUs; give --num-processes {gpus}")
    return ranks


def run_ranks(processes: int, work: Callable[..., None], arguments: Sequence[Any]) -> int:
    """Call `work(*arguments)` in `processes` new processes that form a group; returns the exit code.

    Signals that ask to stop are passed on. When one rank fails the others are asked to stop, so that none
    waits forever in a collective operation. The code is that of the first rank that failed.
    """
    import torch.multiprocessing as multiprocessing
    from accelerate.utils import PrepareForLaunch, patch_environment

    with patch_environment(
        world_size=processes, master_addr="127.0.0.1", master_port=_free_port(), mixed_precision="no",
        # PrepareForLaunch's rank is NPROC * NODE_RANK + number, and clusters export both for their own use
        nproc=processes, node_rank=0,
        # of a killed rank, Python's own tracker of semaphores would say more than the line that names it
        pythonwarnings=",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET))),
    ):  # fmt: skip
        # `spawn`, as CUDA does not survive a fork. "MULTI_GPU" makes PrepareForLaunch set the variables of a
        # rank; the backend itself is chosen later, by the devices there are.
        context = multiprocessing.start_processes(  # type: ignore[attr-defined,no-untyped-call]
            PrepareForLaunch(_Rank(work, sys.argv), distributed_type="MULTI_GPU"),
            args=tuple(arguments), nprocs=processes, join=False, start_method="spawn",
        )  # fmt: skip
    assert context is not None
    return _watch(context.processes)


class _Rank:
    """The work of one rank: picklable, and ends with the exit code that the command line would give."""

    def __init__(self, work: Callable[..., None], argv: list[str]) -> None:
        self.work, self.argv = work, argv

    def __call__(self, *arguments: Any) -> None:
        from medunifier_cli.distributed.rank import run_rank

        sys.argv = self.argv  # the provenance names the command
        run_rank(self.work, arguments)


def _watch(processes: Sequence[Any]) -> int:
    """Wait for the ranks to end, pass signals on to them, and return the exit code."""
    stopped_at: float | None = None

    # A scheduler may signal the parent process alone. Each rank then finishes its step and saves; the parent
    # only waits, however long that takes.
    def forward(number: int, _: Any) -> None:
        for process in processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    before = {
        number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        alive = list(processes)
        while alive:  # the last one to end is looked at too
            alive = [process for process in processes if process.is_alive()]
            # 75 is no failure: ranks that were asked to stop end one after the other
            failed = [process.exitcode for process in processes if process.exitcode not in (None, 0, 75)]
            if failed and stopped_at is None:
                stopped_at = time.monotonic()
                if line := _cause(processes):
                    say(line)
            # they have heard of it and end by themselves, after the line that says why; those that had not
            # met yet have not
            if stopped_at is not None and time.monotonic() - stopped_at > GRACE:
                for process in processes:
                    process.terminate()
            if stopped_at is not None and time.monotonic() - stopped_at > 2 * GRACE:
                for process in processes:
                    process.kill()  # it waits for the failed rank in a collective: there is nothing to save
            time.sleep(0.05 if alive else 0.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [process.exitcode for process in processes]
    bad = [code for code in codes if code not in (0, 75)]
    if bad:
        return bad[0] if bad[0] > 0 else 1  # below 0: ended by a signal, which is no exit code
    return 75 if 75 in codes else 0


def _cause(processes: Sequence[Any]) -> str:
    """Which rank ended without a word, and how; empty where the rank that failed has said it itself."""
    # a rank that was killed takes others with it, within one look at them: it comes first
    for rank, process in enumerate(processes):
        if process.exitcode is not None and process.exitcode < 0:
            number = -process.exitcode
            known = number in set(signal.Signals)
            name = signal.Signals(number).name if known else f"signal {number}"
            memory = "; the usual cause is memory: give the job more, or take a smaller train.micro_batch"
            return f"rank {rank} was killed by {name}{memory if name == 'SIGKILL' else ''}"
    for rank, process in enumerate(processes):
        if process.exitcode not in (None, 0, 1, 75, INTERRUPTED):
            return f"rank {rank} ended with exit code {process.exitcode}, and did not say why"
    return ""


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # 0: the system chooses a free one
        return str(free.getsockname()[1])
