"""Signals are collected, not obeyed at once, and only while training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from medunifier_cli.train.stop import SIGNALS, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_named(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_does_not() -> None:
    with stop_on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="in the step"), stop_on_signals():
        raise ValueError("in the step")
    assert [signal.getsignal(number) for number in SIGNALS] == before


HANGING = """
import os, signal, threading, time
from medunifier_cli.train import stop
stop.PATIENCE = 1.0
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
def batches():
    yield 1
    while True:
        time.sleep(1)
with stop.stop_on_signals() as request:
    for batch in request.until_stopped(batches(), alone=False):
        print(batch, flush=True)
"""


def test_one_rank_of_several_waits_on_after_a_signal_but_not_for_ever() -> None:
    """It may not leave the others alone in a step, and they cannot go on without it."""
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started > 1.0
    assert (result.returncode, result.stdout) == (1, "1\n")
    assert result.stderr.startswith("mu: no batch came within 1 s of SIGTERM; the same command resumes")


def test_one_rank_of_several_takes_the_batch_that_comes_after_a_signal() -> None:
    def batches() -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield 1

    with stop_on_signals() as stop:
        assert list(stop.until_stopped(batches(), alone=False)) == [1]
        assert stop
