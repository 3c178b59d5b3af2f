"""A signal ends a command with 75 in any phase, in bounded time; a second Ctrl-C interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from medunifier_cli import stopping
from medunifier_cli.errors import DataError, Stopped, explain
from medunifier_cli.stopping import SIGNALS, StopSignal, as_stop, handled, installed


def sent(number: int) -> None:
    """Signal this process, and wait for what comes of it."""
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_s_signal_ends_the_command_where_it_is(number: signal.Signals) -> None:
    with handled(), pytest.raises(StopSignal) as caught:
        sent(number)
    assert not isinstance(caught.value, Exception)  # no library on the way up treats it


def test_ctrl_c_is_natural_but_where_the_verb_resumes() -> None:
    with handled(), pytest.raises(KeyboardInterrupt) as caught:
        sent(signal.SIGINT)
    assert not isinstance(caught.value, StopSignal)
    with handled() as request:
        request.training = True
        with pytest.raises(StopSignal):
            sent(signal.SIGINT)


def test_handlers_and_the_thread_are_gone_afterwards() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with handled() as request:
        assert installed() is request
        with handled() as inner:
            assert inner is request
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert installed() is None


def until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_counts_twice_only_if_a_second_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal signals all processes of the group, and a launcher passes the same Ctrl-C on."""
    notes: list[int] = []
    with handled() as request, request.collecting(notes.append):
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: notes)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: len(notes) == 2)
        time.sleep(0.3)
        assert not request.interrupted
        monkeypatch.setattr(stopping, "SAME", 0.0)
        with pytest.raises(KeyboardInterrupt):
            sent(signal.SIGINT)
        assert request.interrupted
        os.kill(os.getpid(), signal.SIGINT)  # raised once: the clean-up goes on


def test_a_second_ctrl_c_is_known_by_its_arrival_and_not_by_when_python_handles_it() -> None:
    """In native code the main thread handles nothing, and the same Ctrl-C would look like a second one."""
    code = """
import ctypes, os, signal, threading, time
from medunifier_cli.stopping import handled
notes = []
with handled() as request, request.collecting(notes.append):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    end = time.monotonic() + 3
    libc = ctypes.CDLL(None)
    while time.monotonic() < end:
        libc.usleep(2_900_000)
    time.sleep(0.3)
    print(len(notes), request.interrupted)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "2 False\n", result.stderr


def test_a_rank_leaves_a_second_ctrl_c_to_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME", 0.0)
    notes: list[int] = []
    with handled() as request, request.collecting(notes.append):
        request.ranked = True
        for count in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda count=count: len(notes) == count)
        time.sleep(0.3)
        assert not request.interrupted


def test_a_signal_during_one_collection_reaches_the_next() -> None:
    first: list[int] = []
    second: list[int] = []
    with handled() as request:
        with request.collecting(first.append):
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: first)
        with request.collecting(second.append):
            pass
    assert first == second == [signal.SIGTERM]


STUCK = """
import signal, sys, threading, time, os
from medunifier_cli import stopping
stopping.LIMIT = 0.5
request = stopping.StopRequest()
request.install()
request.training = sys.argv[2] == "training"
class Swallows:
    def __del__(self):
        time.sleep(600)  # an exception that is raised here is printed and lost
def stuck(kind):
    if kind == "native":
        import ctypes
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second time without an end, and no signal interrupts it
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    elif kind == "lost":
        Swallows()
        time.sleep(600)
    else:
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
threading.Timer(0.3, os.kill, (os.getpid(), getattr(signal, sys.argv[3]))).start()
stuck(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("kind", "verb", "name", "code"),
    [
        ("native", "training", "SIGTERM", 75), ("lost", "training", "SIGUSR1", 75),
        ("swallowed", "training", "SIGINT", 75), ("swallowed", "other", "SIGINT", 130),
    ],
)  # fmt: skip
def test_a_command_that_does_not_end_by_itself_is_ended(kind: str, verb: str, name: str, code: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STUCK, kind, verb, name], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == code, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"mu: stopped by {name}, ")


def test_collecting_is_not_ended_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a large model takes minutes."""
    monkeypatch.setattr(stopping, "LIMIT", 0.1)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with handled() as request, request.collecting(lambda number: None):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.8)
        assert not ended


def test_an_error_that_follows_from_a_signal_is_told_as_the_signal() -> None:
    failure = RuntimeError("Connection closed by peer")
    assert as_stop(failure) is failure
    with handled() as request:
        assert as_stop(failure) is failure
        with request.collecting(lambda number: None):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert explain(as_stop(failure)) == (["stopped by SIGUSR1; run the same command again"], 75)
        # errors of ours say what to mend
        for ours in (DataError("no shards"), Stopped("the checkpoint is saved")):
            assert as_stop(ours) is ours


def test_forked_children_leave_signals_to_their_parent() -> None:
    with handled() as request:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(3)  # not reached: SIGTERM is how a parent ends its children
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.3)
        assert not request
        assert request._first == float("inf")  # nor has the parent's thread heard of the child's signals
