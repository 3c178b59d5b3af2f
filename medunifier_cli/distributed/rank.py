"""Do the work of one rank of several, and end it so that the other ranks, and the user, hear how.

Imports no torch: a rank has to be ready for signals, and for the end of its launcher, before that.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from medunifier_cli.errors import INTERRUPTED, MuError, Stopped, explain, traceback_text
from medunifier_cli.stopping import SIGNALS, StopRequest, as_stop, ignore
from medunifier_cli.terminal.say import say

HOLD = 1.0
"""Seconds that a rank which a signal ends keeps its connections, so that the other ranks hear of it first."""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the one that started it ends."""
LOOK = 1.0
"""Seconds between two looks at whether the launcher is still there, where there is no `prctl`."""


def run_spawned(
    number: int, launcher: int, argv: Sequence[str], method: str, work: bytes, resumes: bool = True
) -> NoReturn:
    """The work of a rank that `launch.run_ranks` started, see `run_rank`.

    Called in a new process in which `SIGNALS` are still held back.

    Args:
        number: of this rank, from 0.
        launcher: process id of the parent.
        argv: the command line, which the provenance names.
        method: how this rank's own processes start. A spawned process would spawn them too, and each loader
            process import torch anew; in a run of one process and in a launcher's group none does.
        work: pickled (function, arguments).
        resumes: Ctrl-C ends it with 75, as the same command resumes; else with 130.
    """
    request = StopRequest()
    request.training, request.ranked = resumes, True
    request.quiet = number > 0
    request.install()
    sys.argv = list(argv)

    def do() -> None:
        end_with(launcher)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        multiprocessing.set_start_method(method, force=True)
        # unpickling imports the stage, and so torch
        function, arguments = pickle.loads(work)
        from accelerate.utils import PrepareForLaunch

        # "MULTI_GPU" makes it set the variables of a rank; the backend itself is chosen later, by the devices
        PrepareForLaunch(function, distributed_type="MULTI_GPU")(number, *arguments)

    _end(do, number, launcher)


def run_rank(work: Callable[..., None], arguments: Sequence[Any], number: int) -> NoReturn:
    """Call `work(*arguments)` and end this process with the exit code that the command line would give.

    One line for the whole group says why it failed: of the rank that failed or, where that cannot speak any
    more, of one that notices.
    """
    _end(lambda: work(*arguments), number)


def _end(work: Callable[[], None], number: int, launcher: int = 0) -> NoReturn:
    """Do the work and end; `launcher` is the process that started the rank, 0 where that is none of ours."""
    code, agreed = 0, True
    try:
        work()
    except BaseException as error:
        # A signal that is raised where it comes, in start-up for example, has come to this rank alone as far
        # as anybody knows; with a checkpoint saved all ranks stop together, and raise `Stopped` themselves.
        alone = not isinstance(error, MuError) and isinstance(as_stop(error), Stopped)
        agreed = isinstance(error, MuError) and (error.of_all_ranks or isinstance(error, Stopped))
        code = _report(error, number, agreed or alone)
        if alone:
            _stop_all(launcher, code)
    # the work is done, or stopped with a checkpoint saved, or all know why not: they come here together
    if agreed:
        from medunifier_cli.distributed import world

        world.leave()
        ignore()
        sys.exit(code)
    from medunifier_cli.distributed import world

    world.fail(code)
    sys.stdout.flush()
    os._exit(code)  # a failed rank must not wait for the others in a collective operation


def end_with(parent: int) -> None:
    """Have SIGTERM sent to this process when its parent ends, or at once if it has ended already."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # not Linux
        threading.Thread(target=_watch_parent, args=(parent,), name="mu-parent", daemon=True).start()
        return
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before that line
        os.kill(os.getpid(), signal.SIGTERM)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


def _report(error: BaseException, number: int, known: bool) -> int:
    """Say on stderr what ended this rank; returns the exit code.

    Args:
        known: all ranks end by it, or hear of it by a signal: no other rank is to blame.
    """
    lines, code = explain(as_stop(error))
    if not known and code not in (Stopped.exit_code, INTERRUPTED):
        from medunifier_cli.distributed import world

        if world.why_lost(error):
            lines, code = [], world.lost_code()  # not of this rank: the one to blame has been named
    # all ranks stop or are interrupted together, and one line is enough; an error may be of one rank
    stopped = code in (Stopped.exit_code, INTERRUPTED)
    if number > 0:
        lines = [] if stopped else [f"rank {number}: {line}" for line in lines]
    for line in lines:
        say(line, always=True)
    if "--debug" in sys.argv and not stopped:
        # not `raise`: Python would print the message as well, which may quote a report
        print(traceback_text(error), end="", file=sys.stderr)
    sys.stderr.flush()
    return code


def _stop_all(launcher: int, code: int) -> NoReturn:
    """Have all ranks stop, where the signal came to this one alone; torch may be imported in part here."""
    if launcher and os.getppid() == launcher:
        os.kill(launcher, signal.SIGTERM)
    world: Any = sys.modules.get("medunifier_cli.distributed.world")
    if hasattr(world, "leave"):  # the last function of the module: it is imported whole
        world.fail(code)
    time.sleep(HOLD)  # a launcher signals its processes one after the other
    os._exit(code)
