"""Turn SIGTERM, SIGUSR1 and Ctrl-C into an end with exit code 75 within a stated time, in every phase.

`__main__` installs a `StopRequest` before anything large is imported. From then on a signal ends the command
where it is, as all files are written so that they are whole or absent; training alone collects signals for a
while, to save a checkpoint first (`train/stop.py`), and so does the process that watches ranks.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from medunifier_cli.errors import INTERRUPTED, MuError, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A scheduler ends the job, a scheduler warns before it does, and Ctrl-C."""
LIMIT = 10.0
"""Seconds after a signal in which a command ends that has nothing to save; after them it is ended."""
SAME = 1.0
"""Seconds in which a further Ctrl-C is the same one: terminal, launcher and torchrun each deliver it."""
LOOK = 0.1
"""Seconds between two looks at the clock once a signal has come."""
CLOSE = 0
"""Sent to the thread that reads the arrivals of signals, to end it; no signal has this number."""


class StopSignal(KeyboardInterrupt):
    """A signal ends the command here.

    No Exception, which libraries on the way up would treat; they know KeyboardInterrupt and let it pass.
    """


class StopRequest:
    """Whether a signal has come, and which; the handler of all `SIGNALS` while it is installed.

    Attributes:
        signal: name of the first signal, empty before there is one.
        training: the verb resumes where it was stopped, so that Ctrl-C also ends it with 75.
        ranked: this process is a rank that `run_ranks` started: only its parent decides on a second Ctrl-C.
        quiet: another rank says what ended them all.
        interrupted: a second Ctrl-C has come.
    """

    def __init__(self) -> None:
        self.signal = ""
        self.training = self.ranked = self.quiet = self.interrupted = False
        self._note: Callable[[int], None] | None = None
        self._again = False
        self._first = self._due = math.inf
        self._name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.signal)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise in the main thread, or take a note where signals are collected."""
        if self._again:
            self._again = False
            self.interrupted = True
            raise KeyboardInterrupt
        first = not self.signal
        if first:
            self.signal = signal.Signals(number).name
        if self._note is not None:
            self._note(number)
        elif first:
            # once: what is raised again would end the clean-up, for example of loader processes
            raise StopSignal if self.training or number != signal.SIGINT else KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """Of a command that this signal has ended."""
        interactive = self.signal == signal.SIGINT.name and not self.training
        return INTERRUPTED if self.interrupted or interactive else Stopped.exit_code

    @contextlib.contextmanager
    def collecting(self, note: Callable[[int], None]) -> Iterator[None]:
        """Call `note` with the number of each signal instead of ending; only a second Ctrl-C still does.

        `note` runs between any two instructions of the main thread.
        """
        outer, self._note = self._note, note
        try:
            if self.signal:  # it came between two such blocks
                note(signal.Signals[self.signal])
            yield
        finally:
            self._due = time.monotonic()  # whoever collected has saved by now
            self._note = outer

    def install(self) -> None:
        """Become the handler of all signals; in the main thread alone."""
        # A handler in Python runs once the main thread is back from native code. The time of arrival, by
        # which two Ctrl-C are told apart and the limit is kept, is known to a thread that reads this socket.
        self._arrivals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._before = {number: signal.signal(number, self) for number in SIGNALS}
        self._fd_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="mu-signals", daemon=True)
        self._thread.start()

    def remove(self) -> None:
        """Put back the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._wakeup.send(bytes([CLOSE]))
        self._thread.join()
        self._arrivals.close()
        self._wakeup.close()

    def _watch(self) -> None:
        while True:
            wait = None if self._first == math.inf else LOOK
            if select.select([self._arrivals], [], [], wait)[0]:
                for number in self._arrivals.recv(64):
                    if number == CLOSE:
                        return
                    if number in SIGNALS:
                        self._arrived(number)
            came = self._first < math.inf
            if came and self._note is None and time.monotonic() > self._due + LIMIT:
                self._end()

    def _arrived(self, number: int) -> None:
        now = time.monotonic()
        if self._first == math.inf:
            self._first = self._due = now
            self._name = signal.Signals(number).name
        elif number == signal.SIGINT and now > self._first + SAME:
            if self.ranked or self.interrupted or self._again:
                return
            self._again = True
            signal.pthread_kill(self._main, signal.SIGINT)  # its own handling may have come too early

    def _end(self) -> None:
        # The main thread is in native code, or a library swallowed the exception. Written without `say`: the
        # main thread may hold the lock of an import or of the stream.
        self.signal = self._name
        line = f"mu: stopped by {self.signal}, {LIMIT:.0f} s after it; run the same command again\n"
        if not self.quiet:
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
        os._exit(self.exit_code)


def installed() -> StopRequest | None:
    """What handles signals in this process; None where they are handled as Python does by itself."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, StopRequest) else None


@contextlib.contextmanager
def handled() -> Iterator[StopRequest]:
    """The installed request, or one for the time of this block."""
    request = installed()
    if request is not None:
        yield request
        return
    request = StopRequest()
    request.install()
    try:
        yield request
    finally:
        request.remove()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the block ends; processes that start in it are born with them held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore signals from here to the end of a process that handled them.

    At exit Python puts back the handlers of before, which end a process whose work is done by a signal.
    """
    if installed() is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def as_stop(error: BaseException) -> BaseException:
    """What to tell the user about an error: that a signal came, if one did and the error may follow from it.

    A library may turn the exception of a signal into one of its own, and a rank loses its connection to
    another one that was stopped a moment before. Errors of ours stay: their lines say what to mend.
    """
    request = installed()
    if request is None or not request or isinstance(error, MuError):
        return error
    if request.exit_code == INTERRUPTED:
        return KeyboardInterrupt()
    return Stopped(f"stopped by {request.signal}; run the same command again")


class _Forks:
    """Keeps forked processes, such as those that load data, from handling signals as this process does."""

    def __init__(self) -> None:
        self._masks = threading.local()

    def before(self) -> None:
        # no signal may arrive in the child while it still writes to the parent's socket
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def in_child(self) -> None:
        if installed() is not None:
            signal.set_wakeup_fd(-1)
            # the parent ends its children; warnings and Ctrl-C reach the whole group, and are the parent's
            for number in (signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.in_parent()


_FORKS = _Forks()
os.register_at_fork(before=_FORKS.before, after_in_parent=_FORKS.in_parent, after_in_child=_FORKS.in_child)
