"""Start one process per GPU and watch them; `group` joins what a launcher has started instead.

Ranks are started as Accelerate's own launchers do it, `PrepareForLaunch` in spawned processes, but are
watched here: `accelerate launch --cpu` starts a single process, and torchrun ends workers 30 s after a
SIGTERM and hides their exit code, so that no checkpoint of a large model and no exit 75 would survive it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from medunifier_cli.distributed.group import joined_rank
from medunifier_cli.distributed.rank import run_rank, run_spawned
from medunifier_cli.errors import INTERRUPTED, USAGE, MuError
from medunifier_cli.stopping import SIGNALS, handled, held, installed
from medunifier_cli.terminal.say import say

GRACE = 5.0
"""Seconds that the other ranks have to end by themselves, once one has failed, before they are asked to;
after as many again they are killed."""
LEFT_BEHIND = 30.0
"""Seconds that ranks may keep running once another one has stopped, its checkpoint saved, before they are
killed."""
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


def in_ranks(
    joined: bool, requested: int, in_recipe: int, work: Callable[..., None], *arguments: Any
) -> None:
    """Call `work(*arguments)` as the rank that this process is, alone, or in each of several new processes.

    Args:
        joined: of `group.joined_group`.
        requested, in_recipe: numbers of ranks, see `wanted_processes`.
        work: picklable.
    """
    if joined:
        run_rank(work, arguments, joined_rank())
    processes = wanted_processes(requested, in_recipe)
    if processes > 1:
        sys.exit(run_ranks(processes, work, arguments))
    work(*arguments)


def run_ranks(processes: int, work: Callable[..., None], arguments: Sequence[Any]) -> int:
    """Call `work(*arguments)` in `processes` new processes that form a group; returns the exit code.

    Signals that ask to stop are passed on. When one rank fails the others are asked to stop, so that none
    waits forever in a collective operation. The code is that of the first rank that failed.

    Raises:
        KeyboardInterrupt: a second Ctrl-C; all ranks have been killed.
    """
    from accelerate.utils import patch_environment

    # `spawn`, as CUDA does not survive a fork
    context = multiprocessing.get_context("spawn")
    task = pickle.dumps((work, tuple(arguments)))
    request = installed()
    # Ctrl-C ends ranks as it ends their verb alone: with 75 what resumes, with 130 what only measures
    resumes = request is None or request.training
    method = multiprocessing.get_start_method()
    ranks = [
        context.Process(target=run_spawned, args=(number, os.getpid(), sys.argv, method, task, resumes))
        for number in range(processes)
    ]
    with patch_environment(
        world_size=processes, master_addr="127.0.0.1", master_port=_free_port(), mixed_precision="no",
        # PrepareForLaunch's rank is NPROC * NODE_RANK + number, and clusters export both for their own use
        nproc=processes, node_rank=0,
    ), _passing_on(ranks):  # fmt: skip
        _start(ranks)
        return _watch(ranks)


def _start(ranks: Sequence[Any]) -> None:
    """Start the ranks, with signals held back in each of them until it can answer, and here for as long."""
    from accelerate.utils import patch_environment

    with held():
        # Started by the first process otherwise, and it lets signals through again. It would report what the
        # loader processes of a killed rank leave behind, and remove it, which is what it is for.
        before = os.environ.get("PYTHONWARNINGS")
        quiet = ",".join(filter(None, (before, "ignore:resource_tracker")))
        with patch_environment(pythonwarnings=quiet):
            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for rank in ranks:
                rank.start()
        except BaseException:
            _kill(rank for rank in ranks if rank.pid)  # at exit Python would wait for them
            raise


def _watch(ranks: Sequence[Any]) -> int:
    """Wait for the ranks to end, pass signals on to them, and return the exit code."""
    failed_at = left_at = math.inf
    with _passing_on(ranks) as passed:
        alive = True
        while alive:  # the last one to end is looked at too
            alive = any(rank.is_alive() for rank in ranks)
            # 75 is no failure: ranks that were asked to stop end one after the other
            codes = [_code(rank, passed) for rank in ranks]
            if failed_at == math.inf and any(code not in (None, 0, 75) for code in codes):
                failed_at = time.monotonic()
                if line := _cause(codes):
                    say(line, always=True)
            if left_at == math.inf and 75 in codes:
                left_at = time.monotonic()
                _terminate(ranks)  # the signal may have come to the other rank alone
            # they have heard of it and end by themselves, after the line that says why; those that had not
            # met yet have not
            if time.monotonic() > failed_at + GRACE:
                _terminate(ranks)
            # they wait in a collective for a rank that is gone: there is nothing to save
            if time.monotonic() > min(failed_at + 2 * GRACE, left_at + LEFT_BEHIND):
                _kill(ranks)
            time.sleep(0.05 if alive else 0.0)
    return _group_code([_code(rank, passed) or 0 for rank in ranks], left_at < failed_at)


def _group_code(codes: Sequence[int], stopped: bool) -> int:
    """Exit code of a group from those of its ranks; a rank that had to be ended after a stop has stopped."""
    codes = [75 if stopped and code in (-signal.SIGTERM, -signal.SIGKILL) else code for code in codes]
    bad = [code for code in codes if code not in (0, 75)]
    if bad:
        return bad[0] if bad[0] > 0 else 1  # below 0: ended by a signal, which is no exit code
    return 75 if 75 in codes else 0


@contextmanager
def _passing_on(ranks: Sequence[Any]) -> Iterator[list[int]]:
    """Pass signals on to the ranks; yields those that came, and kills the ranks on a second Ctrl-C."""
    passed: list[int] = []

    # A scheduler may signal the parent process alone. Each rank then finishes its step and saves; the parent
    # only waits, however long that takes. A terminal signals the ranks as well, so they ignore repetitions,
    # and what is a second Ctrl-C is decided here.
    def pass_on(number: int) -> None:
        passed.append(number)
        for rank in ranks:
            if rank.is_alive() and rank.pid:
                os.kill(rank.pid, number)

    with handled() as request, request.collecting(pass_on):
        try:
            yield passed
        except KeyboardInterrupt:
            _kill(ranks)
            raise


def _code(rank: Any, passed: Sequence[int]) -> int | None:
    """Exit code of a rank, None while it runs; one that ended by a signal that was passed on has stopped."""
    code: int | None = rank.exitcode
    return 75 if code is not None and -code in passed else code


def _cause(codes: Sequence[int | None]) -> str:
    """Which rank ended without a word, and how; empty where the rank that failed has said it itself."""
    # a rank that was killed takes others with it, within one look at them: it comes first
    for number, code in enumerate(codes):
        if code is not None and code < 0:
            known = -code in set(signal.Signals)
            name = signal.Signals(-code).name if known else f"signal {-code}"
            memory = "; the usual cause is memory: give the job more, or take a smaller train.micro_batch"
            return f"rank {number} was killed by {name}{memory if name == 'SIGKILL' else ''}"
    for number, code in enumerate(codes):
        # USAGE: a mistake in the command line that only the data showed, for example an unknown prompt set
        if code not in (None, 0, 1, USAGE, 75, INTERRUPTED):
            return f"rank {number} ended with exit code {code}, and did not say why"
    return ""


def _terminate(ranks: Iterable[Any]) -> None:
    for rank in ranks:
        rank.terminate()


def _kill(ranks: Iterable[Any]) -> None:
    for rank in ranks:
        rank.kill()


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # 0: the system chooses a free one
        return str(free.getsockname()[1])
