"""A rank that `run_ranks` starts never outlives its launcher."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys, time
from medunifier_cli.distributed import rank
from medunifier_cli.stopping import StopSignal, handled

def no_prctl(_):
    raise OSError("no such library")

if sys.argv[1] == "thread":
    rank.ctypes.CDLL = no_prctl
    rank.LOOK = 0.05
with handled():
    try:
        if sys.argv[2] == "before":
            rank.end_with(os.getppid() + 1)  # this one's place has been taken by another process
        else:
            reading, writing = os.pipe()
            launcher = os.fork()
            if launcher == 0:
                child = os.fork()
                if child:
                    os.read(reading, 1)
                    os._exit(0)
                with handled():
                    try:
                        rank.end_with(os.getppid())
                        os.write(writing, b"1")
                        time.sleep(60)
                    except StopSignal:
                        print("stopped", flush=True)
                os._exit(0)
            os.waitpid(launcher, 0)
        time.sleep(60 if sys.argv[2] == "before" else 0)
    except StopSignal:
        print("stopped", flush=True)
"""


@pytest.mark.parametrize("means", ["prctl", "thread"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rank_is_told_when_its_launcher_ends(means: str, when: str) -> None:
    """Also if that was before it could ask to be told, and where the system has no `prctl`."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, means, when], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "stopped\n", done.stderr
