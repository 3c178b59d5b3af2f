"""Turn signals into a request to stop at the end of the current training step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

B = TypeVar("B")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A scheduler ends the job, a scheduler warns before it does, and Ctrl-C."""
PATIENCE = 60.0
"""Seconds that one rank of several waits for its batch after a signal, before it ends without saving."""


class StopRequest:
    """Whether a signal has come, and which; ends the wait for a batch when one comes."""

    def __init__(self) -> None:
        self.signal: str = ""
        self._waiting = self._alone = False
        self._limit: threading.Timer | None = None

    def __bool__(self) -> bool:
        return bool(self.signal)

    def record(self, number: int, frame: FrameType | None) -> None:
        """Take a note of a signal: the handler."""
        # Ctrl-C alone: the same SIGTERM may come twice, from the scheduler and from the launcher
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        self._end_wait()

    def until_stopped(self, batches: Iterator[B], alone: bool) -> Generator[B, None, None]:
        """The batches, up to the one that is still waited for when a signal comes.

        Args:
            alone: this process is the only rank. One of several may not leave the others, who wait for it in
                the step's collective operations: it waits on for its batch, but not for ever.
        """
        self._alone = alone
        while True:
            try:
                self._waiting = True
                if self:
                    self._end_wait()  # the signal came since the loop last looked
                batch = next(batches, None)
                self._waiting = False
            except _WaitEndedError:
                return
            finally:
                self._waiting = False
                if self._limit is not None:
                    self._limit.cancel()
                    self._limit = None
            if batch is None:
                return
            yield batch

    def _end_wait(self) -> None:
        if self._waiting and self._alone:
            self._waiting = False
            raise _WaitEndedError
        if self._waiting and self._limit is None:
            self._limit = threading.Timer(PATIENCE, self._give_up)
            self._limit.daemon = True
            self._limit.start()

    def _give_up(self) -> None:
        print(
            f"mu: no batch came within {PATIENCE:.0f} s of {self.signal}; the same command resumes from the "
            "last checkpoint", file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(1)  # from a thread: the main one hangs, and the other ranks wait for it


class _WaitEndedError(BaseException):
    """A signal came while a batch was waited for. No Exception: libraries on the way up would treat it."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect signals instead of ending at once. A second Ctrl-C interrupts at once.

    Yields:
        True as soon as a signal has come; the loop asks for it after each step.
    """
    request = StopRequest()

    # A handler runs between any two instructions, in the middle of an optimiser step or of a checkpoint. So
    # it takes a note and no more, except in the wait for a batch, where the run's state is whole; elsewhere
    # the loop acts on the note at the end of the step.
    before = {number: signal.signal(number, request.record) for number in SIGNALS}
    try:
        yield request
    finally:
        # the evaluation that follows training has nothing to save, and should end at once again
        for number, handler in before.items():
            signal.signal(number, handler)
