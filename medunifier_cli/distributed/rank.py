"""One rank that `launch.run_ranks` started: it ends with its launcher, stops on signals, says why it ended.

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
import traceback
from collections.abc import Sequence

from medunifier_cli.errors import INTERRUPTED, MuError, Stopped, explain
from medunifier_cli.stopping import SIGNALS, StopRequest, as_stop, ignore
from medunifier_cli.terminal.say import say

HOLD = 1.0
"""Seconds that a rank which a signal ends keeps its connections, so that the other ranks hear of it first."""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that a process gets when the one that started it ends."""
LOOK = 1.0
"""Seconds between two looks at whether the launcher is still there, where there is no `prctl`."""


def run_rank(number: int, launcher: int, argv: Sequence[str], method: str, work: bytes) -> None:
    """Do the work of one rank; ends with the exit code that the command line would give.

    Called in a new process in which `SIGNALS` are still held back.

    Args:
        number: of this rank, from 0.
        launcher: process id of the parent.
        argv: the command line, which the provenance names.
        method: how this rank's own processes start. A spawned process would spawn them too, and each loader
            process import torch anew; in a run of one process and in a launcher's group none does.
        work: pickled (function, arguments).
    """
    request = StopRequest()
    request.training = request.ranked = True
    request.quiet = number > 0
    request.install()
    sys.argv = list(argv)
    code = 0
    try:
        end_with(launcher)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        multiprocessing.set_start_method(method, force=True)
        # unpickling imports the stage, and so torch
        function, arguments = pickle.loads(work)
        from accelerate.utils import PrepareForLaunch

        # "MULTI_GPU" makes it set the variables of a rank; the backend itself is chosen later, by the devices
        PrepareForLaunch(function, distributed_type="MULTI_GPU")(number, *arguments)
    except BaseException as error:
        code = _report(error, number)
        if isinstance(as_stop(error), Stopped) and not isinstance(error, MuError):
            _stop_all(launcher)
            os._exit(code)  # torch may be imported in part
    # 75: stopped with a checkpoint saved, and all ranks come to this point together
    if code in (0, Stopped.exit_code):
        from medunifier_cli.distributed import world

        world.leave()
        ignore()
        sys.exit(code)
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


def _report(error: BaseException, number: int) -> int:
    """Say on stderr what ended this rank; returns the exit code."""
    lines, code = explain(as_stop(error))
    # all ranks stop or are interrupted together, and one line is enough; an error may be of one rank
    stopped = code in (Stopped.exit_code, INTERRUPTED)
    if number == 0 or not stopped:
        for line in lines:
            say(line)
    if "--debug" in sys.argv and not stopped:
        traceback.print_exception(error)
    sys.stderr.flush()
    return code


def _stop_all(launcher: int) -> None:
    """Have the launcher stop all ranks, where the signal came to this one alone."""
    if os.getppid() == launcher:
        os.kill(launcher, signal.SIGTERM)
    time.sleep(HOLD)
